"""Export a finished run to one file: `python -m src.export run=runs/... format=onnx`."""

from src.command_line import program

if __name__ == "__main__":
    program("export", "src.commands.export:export_run")
