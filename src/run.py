from src.command_line import program

if __name__ == "__main__":
    program("run", "src.commands.run:run")
