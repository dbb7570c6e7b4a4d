"""One experiment: `python -m src.run model=patchcore data=mvtec data.category=bottle`."""

from src.command_line import program

if __name__ == "__main__":
    program("run", "src.commands.run:run")
