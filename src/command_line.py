"""What every entry point shares: `.env`, short messages for mistakes, exit codes.

Only Hydra is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import pkgutil
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

import hydra
import hydra.types
from dotenv import load_dotenv
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.allocator import keep_freed_memory
from src.composing import CONF, MULTIRUN, compose, defaults_of, split_words
from src.errors import ConfigError
from src.files import print_any_name
from src.grammar import hydra_words
from src.mistakes import explain
from src.options import check_options, is_true

INTERRUPTED = 130  # the shell's code for Ctrl-C
ANSWERS = {"-h", "--help", "-c", "--cfg", "-i", "--info", "--hydra-help"}
UNREAD = 141  # the shell's code for a program whose output nobody reads


def program(config_name: str, function: str) -> Callable[[], None]:
    """The program that composes conf/`config_name`.yaml and calls `function` (package.module:name).

    The function takes the composed config; the number it returns is the exit code, anything else
    means 0. It is imported when the words have proved to be right: `--help` answers at once.
    Mistakes of the user are explained in a few lines and exit with 2; `debug=true` or
    HYDRA_FULL_ERROR=1 shows the stack trace.
    """

    def main() -> None:
        _open_closed_streams()
        print_any_name()
        leave = _Leaving()
        try:
            code = _start(function, config_name)
            sys.stdout.flush()
        except KeyboardInterrupt:
            print("Interrupted. Run the same command again to continue.", file=sys.stderr)
            # Python kills itself with SIGINT at exit when an interrupt passed through an eval
            # of a string (a namedtuple being made, say), even if it was caught: this clears it.
            exec("")
            code = INTERRUPTED
        except SystemExit as done:  # hydra after --help; argparse after a wrong flag; rich
            code = done.code if isinstance(done.code, int) else int(bool(done.code))
            code = UNREAD if isinstance(done.__context__, BrokenPipeError) else code
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _unread():
                code = UNREAD
            elif _verbose():
                raise
            else:
                code = explain(error, config_name, sys.argv[1:])
        leave.with_code(UNREAD if _unread() else code)

    return main


def _start(function: str, config_name: str) -> int:
    """Read `.env` and the command line, call the program; its exit code."""
    _load_environment(Path(".env"))
    keep_freed_memory()
    # ours: threads that wait sleep instead of spinning. On a machine that does other work
    # too, `make demo` took 31 s instead of 193 s (2 cores, load 5).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    codes: list[int] = []
    failed: list[Exception] = []

    def task(cfg: DictConfig) -> None:
        try:
            check_options(cfg, defaults_of(config_name, HydraConfig.get().overrides.task, cfg))
            code = pkgutil.resolve_name(function)(cfg)
            codes.append(code if isinstance(code, int) else 0)
        except Exception as error:
            if HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN:
                raise  # the launcher must know which job failed
            failed.append(error)  # hydra would print its own line before ours

    _serve(task, config_name)
    if failed:
        raise failed[0]
    return max(codes, default=0)


def _serve(task: Callable[[DictConfig], None], config_name: str) -> None:
    """What the command line asks for: one run, many, or an answer of Hydra such as --help."""
    flags, words, many = split_words(sys.argv[1:])
    words = hydra_words(words, many=many)
    if set(flags) - MULTIRUN:
        if "=" in "".join(words):
            compose(
                config_name, [word for word in words if "=" in word]
            )  # a typo is ours to explain
        sys.argv[1:] = hydra_words(sys.argv[1:], many=many)
        answer = io.StringIO()  # printed whole, as Hydra shows a stack trace when nobody reads it
        asks = {flag.split("=")[0] for flag in flags} & ANSWERS
        try:
            with contextlib.redirect_stdout(answer) if asks else contextlib.nullcontext():
                hydra.main(str(CONF), config_name, "1.3")(task)()
        finally:
            print(answer.getvalue(), end="")
        return
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        program: Any = GlobalHydra.instance().hydra
        (program.multirun if many else program.run)(config_name, task, words)


def _load_environment(path: Path) -> None:
    """The variables of a `.env` file; what the shell has set wins."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # Windows' editors put a mark in front
        load_dotenv(stream=io.StringIO(text))
    except (FileNotFoundError, IsADirectoryError):
        return
    except (OSError, ValueError) as error:  # another encoding, a NUL byte, no permission
        raise ConfigError(
            f"{path.absolute()} cannot be read.",
            found=f"{type(error).__name__}: {error}",
            do="save it as UTF-8 text with lines NAME=value, or delete it",
        ) from error


def _open_closed_streams() -> None:
    """Give a closed output (`>&-`) a place to go, so that no other file takes its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  until the end


def _unread() -> bool:
    """Whether the reader of our output has left (`| head -1`); what is left then goes nowhere."""
    unread = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            gone = _reader_left(stream)
        except BrokenPipeError:
            gone = True
        if gone:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        unread |= gone
    return unread


def _reader_left(stream: TextIO) -> bool:
    if not hasattr(select, "poll") or not isinstance(stream, io.TextIOWrapper):
        return False
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except io.UnsupportedOperation:  # a notebook's or a test's own stream
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _verbose() -> bool:
    asked = any(word.startswith("debug=") and is_true(word[6:]) for word in sys.argv)
    return asked or bool(os.environ.get("HYDRA_FULL_ERROR"))


class _Leaving:
    """Ends a program without the teardown of a million objects: 1.3 s of every command (ours).

    Registered before everything else, its exit handler comes after those of all libraries (W&B,
    worker processes, temporary folders), and then stops the process with nothing left to do.
    """

    def __init__(self) -> None:
        self.code = 1
        main = getattr(sys.modules["__main__"], "__spec__", None)
        if main is not None and main.name.startswith("src."):  # a program, not a test or notebook
            atexit.register(self._stop)

    def with_code(self, code: int) -> NoReturn:
        self.code = code
        sys.exit(code)

    def _stop(self) -> None:
        logging.shutdown()
        with contextlib.suppress(OSError):  # a full disk, which was said already
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self.code)
