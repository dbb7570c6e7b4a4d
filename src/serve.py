from src.command_line import program

if __name__ == "__main__":
    program("serve", "src.commands.serve:serve")
