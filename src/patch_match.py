from src.command_line import program

if __name__ == "__main__":
    program("patch_match", "src.commands.patch_match:explain_image")
