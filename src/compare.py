from src.command_line import program

if __name__ == "__main__":
    program("compare", "src.commands.compare:compare_runs")
