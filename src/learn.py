from src.command_line import program

if __name__ == "__main__":
    program("learn", "src.commands.learn:learn_images")
