from src.command_line import program

if __name__ == "__main__":
    program("reproduce", "src.commands.reproduce:reproduce")
