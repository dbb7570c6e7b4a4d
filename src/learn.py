"""Confirmed good parts join a finished run: `python -m src.learn run=runs/... images=folder`."""

from src.command_line import program

if __name__ == "__main__":
    program("learn", "src.commands.learn:learn_images")
