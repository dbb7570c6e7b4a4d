from src.command_line import program

if __name__ == "__main__":
    program("evaluate", "src.commands.evaluate:evaluate_run")
