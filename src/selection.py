"""Figures for choosing a model from finished runs: `python -m src.selection runs=runs`."""

from src.command_line import program

if __name__ == "__main__":
    program("selection", "src.commands.selection:write_selection")
