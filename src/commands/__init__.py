"""What each command does: `python -m src.<name>` is `src/commands/<name>.py`."""
