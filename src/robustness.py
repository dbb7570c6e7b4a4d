"""How a detector holds up under change: `python -m src.robustness run=runs/...`."""

from src.command_line import program

main = program("robustness", "src.commands.robustness:measure_robustness")

if __name__ == "__main__":
    main()
