"""The learning curve of a method: `python -m src.few_shot model=patchcore data.category=screw`."""

from src.command_line import program

if __name__ == "__main__":
    program("few_shot", "src.commands.few_shot:few_shot")
