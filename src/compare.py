"""Two runs side by side: `python -m src.compare run_a=runs/... run_b=runs/...`."""

from src.command_line import program

if __name__ == "__main__":
    program("compare", "src.commands.compare:compare_runs")
