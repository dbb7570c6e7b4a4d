"""One experiment: `python -m src.run model=patchcore data=mvtec data.category=bottle`."""

from src.command_line import program

main = program("run", "src.commands.run:run")

if __name__ == "__main__":
    main()
