from src.command_line import program

if __name__ == "__main__":
    program("predict", "src.commands.predict:predict_images")
