"""Score images with a finished run: `python -m src.predict run=runs/... images=folder`."""

from src.command_line import program

if __name__ == "__main__":
    program("predict", "src.commands.predict:predict_images")
