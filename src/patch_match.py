"""The normal patches an image was compared with: `python -m src.patch_match run=... image=...`."""

from src.command_line import program

if __name__ == "__main__":
    program("patch_match", "src.commands.patch_match:explain_image")
