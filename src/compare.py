"""Two runs side by side: `python -m src.compare run_a=runs/... run_b=runs/...`."""

from src.command_line import program

main = program("compare", "src.commands.compare:compare_runs")

if __name__ == "__main__":
    main()
