import sys
from pathlib import Path

from src.command_line import program


def name_the_file(arguments: list[str]) -> list[str]:
    """Let the first word be the sweep file: `sweeps/x.yaml` becomes `file=sweeps/x.yaml`."""
    if not arguments or arguments[0].startswith("-"):
        return arguments
    if "=" in arguments[0] and not Path(arguments[0]).is_file():
        return arguments
    return [f"file={arguments[0]}", *arguments[1:]]


if __name__ == "__main__":
    sys.argv[1:] = name_the_file(sys.argv[1:])
    program("sweep", "src.commands.sweep:run_sweep")
