from src.command_line import program

if __name__ == "__main__":
    program("check", "src.commands.check:check_data_set")
