"""Messages of a run: short on the console, with time stamps in log.txt."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from src.files import ESCAPE


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Say nothing: of several processes only the first one speaks."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Our code speaks to the console and, with everyone's warnings, to the end of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ours, root = logging.getLogger("src"), logging.getLogger()
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(message)s"))
    file = logging.FileHandler(path, encoding="utf-8", errors=ESCAPE)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    level = ours.level
    ours.setLevel(logging.INFO)
    ours.addHandler(console)
    root.addHandler(file)
    logging.captureWarnings(True)
    try:
        yield
    except BaseException as error:
        ours.removeHandler(console)  # the console gets its own, shorter words
        ours.error("stopped: %s: %s", type(error).__name__, error)
        raise
    finally:
        logging.captureWarnings(False)
        ours.setLevel(level)
        ours.removeHandler(console)
        root.removeHandler(file)
        file.close()
