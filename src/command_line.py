"""What every entry point shares: `.env`, short messages for mistakes, exit codes.

Only Hydra is imported here, so that `--help` answers at once.
"""

import contextlib
import io
import os
import pkgutil
import select
import signal
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
import hydra.types
from dotenv import load_dotenv
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.composing import CONF, MULTIRUN, compose, defaults_of, split_words
from src.errors import ConfigError
from src.files import ESCAPE
from src.grammar import hydra_words
from src.mistakes import explain
from src.options import check_options, is_true

INTERRUPTED = 130  # the shell's code for Ctrl-C
ANSWERS = {"-c", "--cfg", "-i", "--info", "--hydra-help"}
UNREAD = 141  # the shell's code for a program whose output nobody reads


class Interrupted(KeyboardInterrupt):
    """Ctrl-C.

    A kind of its own, as Python ends a process by SIGINT instead of its exit code when a plain
    KeyboardInterrupt has passed through the evaluation of a text, even if it was caught.
    """


def program(config_name: str, function: str) -> NoReturn:
    """Compose conf/`config_name`.yaml, call `function` (package.module:name) with it, and exit.

    The number that it returns is the exit code, anything else means 0. It is imported when the
    words have proved to be right. Mistakes of the user are explained in a few lines and exit
    with 2; `debug=true` or HYDRA_FULL_ERROR=1 shows the stack trace.
    """
    for name in ("stdout", "stderr"):  # closed (`>&-`): no other file may take its number
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  until the end
    if isinstance(sys.stdout, io.TextIOWrapper):  # names with bytes that are not UTF-8
        sys.stdout.reconfigure(errors=ESCAPE)
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # where the shell has switched Ctrl-C off, it stays off
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = _exit_code(function, config_name)
    finally:
        signal.signal(signal.SIGINT, usual)
    sys.exit(UNREAD if _unread() else code)


def _exit_code(function: str, config_name: str) -> int:
    try:
        code = _start(function, config_name)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as done:  # hydra after --help; argparse after a wrong flag; rich; Lightning
        code = done.code if isinstance(done.code, int) else int(bool(done.code))
        if isinstance(done.__context__, KeyboardInterrupt):
            code = INTERRUPTED
        elif isinstance(done.__context__, BrokenPipeError):
            code = UNREAD
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():
            code = UNREAD
        elif os.environ.get("HYDRA_FULL_ERROR") or any(
            word.startswith("debug=") and is_true(word[6:]) for word in sys.argv
        ):
            raise
        else:
            code = explain(error, config_name, sys.argv[1:])
    if code == INTERRUPTED:
        print("Interrupted. Run the same command again to continue.", file=sys.stderr)
    return code


def _interrupt(*_: Any) -> None:
    raise Interrupted


def _start(function: str, config_name: str) -> int:
    """Read `.env` and the command line, call the program; its exit code."""
    _load_environment(Path(".env"))
    codes: list[int] = []
    failed: list[Exception] = []

    def task(cfg: DictConfig) -> None:
        try:
            words = HydraConfig.get().overrides.task
            cfg = check_options(cfg, defaults_of(config_name, words, cfg))
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
    if not set(flags) - MULTIRUN:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            program: Any = GlobalHydra.instance().hydra
            (program.multirun if many else program.run)(config_name, task, words)
        return
    if {"-h", "--help"} & set(flags):
        print(_help(config_name, [word for word in words if "=" in word]))
        return
    if any("=" in word for word in words):  # a typo is ours to explain
        compose(config_name, [word for word in words if "=" in word])
    sys.argv[1:] = hydra_words(sys.argv[1:], many=many)
    answer = io.StringIO()  # printed whole, as Hydra shows a stack trace when nobody reads it
    asks = {flag.split("=")[0] for flag in flags} & ANSWERS
    try:
        with contextlib.redirect_stdout(answer) if asks else contextlib.nullcontext():
            hydra.main(str(CONF), config_name, "1.3")(task)()
    finally:
        print(answer.getvalue(), end="")


def _help(config_name: str, words: list[str]) -> str:
    """The program's help; Hydra's own lists the groups by copying all schemas for each of them."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose(config_name, words, return_hydra_config=True)
    files: dict[str, list[str]] = {}
    for file in sorted(CONF.glob("*/**/*.yaml")):
        files.setdefault(file.parent.relative_to(CONF).as_posix(), []).append(file.stem)
    groups = "".join(f"{group}: {', '.join(names)}\n" for group, names in files.items())
    template = string.Template(cfg.hydra.help.template)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return template.substitute(APP_CONFIG_GROUPS=groups, CONFIG=OmegaConf.to_yaml(own))


def _load_environment(path: Path) -> None:
    """The variables of a `.env` file; what the shell has set wins."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # Windows' editors put a mark in front
        load_dotenv(stream=io.StringIO(text))
    except (FileNotFoundError, IsADirectoryError):
        return
    except (OSError, ValueError) as error:  # another encoding, a NUL byte, no permission
        what, found = f"{path.absolute()} cannot be read.", f"{type(error).__name__}: {error}"
        do = "save it as UTF-8 text with lines NAME=value, or delete it"
        raise ConfigError(what, found=found, do=do) from error


def _unread() -> bool:
    """Whether the reader of our output has left (`| head -1`); what is left then goes nowhere."""
    unread = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            gone = any(event & select.POLLERR for _, event in poll.poll(0))
        except BrokenPipeError:
            gone = True
        except (io.UnsupportedOperation, AttributeError):  # a notebook's own stream; no poll
            continue
        if gone:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        unread |= gone
    return unread
