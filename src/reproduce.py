"""The tables of the papers, run and judged: `python -m src.reproduce paper=smoke`."""

from src.command_line import program

if __name__ == "__main__":
    program("reproduce", "src.commands.reproduce:reproduce")
