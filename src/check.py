"""Data doctor: `python -m src.check data=folder data.root=photos`."""

from src.command_line import program

main = program("check", "src.commands.check:check_data_set")

if __name__ == "__main__":
    main()
