from src.command_line import program

if __name__ == "__main__":
    program("robustness", "src.commands.robustness:measure_robustness")
