from src.command_line import program

if __name__ == "__main__":
    program("selection", "src.commands.selection:write_selection")
