from src.command_line import program

if __name__ == "__main__":
    program("export", "src.commands.export:export_run")
