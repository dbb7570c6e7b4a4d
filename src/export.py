"""Export a finished run to one file: `python -m src.export run=runs/... format=onnx`."""

from src.command_line import program

main = program("export", "src.commands.export:export_run")

if __name__ == "__main__":
    main()
