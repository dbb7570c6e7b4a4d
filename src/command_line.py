"""What every entry point shares: `.env`, short messages for mistakes, exit codes.

Only Hydra is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import hydra
import hydra.types
from dotenv import load_dotenv
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.allocator import keep_freed_memory
from src.errors import GoodpartsError, did_you_mean
from src.files import print_any_name

CONF = Path(__file__).resolve().parent.parent / "conf"
INTERRUPTED = 130  # the shell's code for Ctrl-C
USER_ERROR = 2

Main = Callable[[DictConfig], int | None]


def app(config_name: str) -> Callable[[Main], Callable[[], None]]:
    """Make a function of a composed config a program: `@app("run") def main(cfg) -> int`.

    The return value is the exit code (None: 0). Mistakes of the user are explained in a few lines
    and exit with 2; `debug=true` or HYDRA_FULL_ERROR=1 shows the stack trace.
    """

    def decorate(function: Main) -> Callable[[], None]:
        @functools.wraps(function)
        def program() -> None:
            print_any_name()
            load_dotenv(Path.cwd() / ".env")
            keep_freed_memory()
            leave = _Leaving()
            # ours: threads that wait sleep instead of spinning. On a machine that does other work
            # too, `make demo` took 31 s instead of 193 s (2 cores, load 5).
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            verbose = bool(os.environ.get("HYDRA_FULL_ERROR")) or "debug=true" in sys.argv
            os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us instead of hydra's printer
            codes: list[int] = []
            failed: list[Exception] = []

            @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
            def task(cfg: DictConfig) -> None:
                try:
                    codes.append(function(cfg) or 0)
                except Exception as error:
                    if _many():
                        raise  # the launcher must know which job failed
                    failed.append(error)  # hydra would print its own line before ours

            try:
                task()
                if failed:
                    raise failed[0]
            except KeyboardInterrupt:
                _say("Interrupted. Run the same command again to continue.")
                # Python kills itself with SIGINT at exit when an interrupt passed through an eval
                # of a string (a namedtuple being made, say), even if it was caught: this clears it.
                exec("")
                leave.with_code(INTERRUPTED)
            except SystemExit as done:  # hydra after --help; argparse after a wrong flag
                leave.code = done.code if isinstance(done.code, int) else int(bool(done.code))
                raise
            except Exception as error:
                if verbose:
                    raise
                _explain(error, config_name)
                leave.with_code(USER_ERROR if _mistake(error) else 1)
            leave.with_code(max(codes, default=0))

        return program

    return decorate


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Load modules with the cycle collector paused: 2.7 s instead of 3.6 s for a run (ours)."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.code)


def _many() -> bool:
    """Whether this is one job of a multirun (`-m`)."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.initialized() and HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN


def _mistake(error: BaseException) -> bool:
    known = (GoodpartsError, HydraException, OmegaConfBaseException)
    return isinstance(_root(error), known) or isinstance(error, known)


def _root(error: BaseException) -> BaseException:
    """The user's own mistake inside wrappers such as hydra's InstantiationException."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GoodpartsError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def _explain(error: BaseException, config_name: str) -> None:
    root = _root(error)
    if isinstance(root, GoodpartsError):
        _say(f"Error: {root}")
    elif (advice := _machine_trouble(error)) is not None:
        _say(f"Error: {advice}")
    elif isinstance(error, HydraException | OmegaConfBaseException):
        _say(f"Error: {explain_overrides(sys.argv[1:], config_name) or _first_lines(error)}")
    else:
        traceback.print_exception(error)
        _say("This is a bug or a broken machine, not your configuration: please report it.")


def _machine_trouble(error: BaseException) -> str | None:
    """Advice for a full disk, a folder without permission, or too little memory."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full.\n  found: {text}\n"
            "  do:    free some space, or set RUNS_DIR to another disk; run the same command again"
        )
    if isinstance(error, OSError) and error.errno in (
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST,
    ):  # fmt: skip
        return (
            f"A file or folder cannot be written.\n  found: {text}\n"
            "  do:    check its permissions, or set RUNS_DIR to a folder of your own"
        )
    out_of_memory = isinstance(error, MemoryError) or "OutOfMemory" in text
    if out_of_memory or "allocate memory" in text:
        return (
            f"There is not enough memory.\n  found: {text.splitlines()[0]}\n"
            "  do:    lower data.batch_size, set model.memory_budget_gb for PatchCore, use a "
            "smaller transform.crop, or hardware.precision=bf16-mixed on a GPU"
        )
    if "DataLoader worker" in text:
        return (
            "A process that decodes images was killed, mostly because memory or shared memory "
            f"ran out.\n  found: {text.splitlines()[0]}\n"
            "  do:    lower hardware.num_workers (0 needs none) or data.batch_size; run the same "
            "command again"
        )
    return None


def _first_lines(error: BaseException) -> str:
    return "\n  ".join(line for line in str(error).splitlines() if line.strip())


def explain_overrides(arguments: list[str], config_name: str) -> str | None:
    """Why command-line overrides do not compose, with the nearest valid names; None: they do."""
    words = [word for word in arguments if not word.startswith("-") and "=" in word]
    good: list[str] = []
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            return (
                f"{word!r} is not of the form key=value. Quote values that hold spaces, brackets "
                """or an equals sign: 'overrides=["backbone=resnet18"]'."""
            )
        key = (override.key_or_group or "").removeprefix("+")
        if _composes(config_name, [*good, word]):
            good.append(word)
            continue
        return _reason(config_name, good, key, word)
    return None


def _reason(config_name: str, good: list[str], key: str, word: str) -> str:
    value = word.split("=", 1)[1]
    group = CONF / key
    if group.is_dir():
        options = [path.stem for path in group.glob("*.yaml")]
        return f"no {key} named {value!r}. {did_you_mean(value, options)}"
    keys = _keys(config_name, good)
    if key in keys:
        return f"{word!r} is not a valid value for {key} (now: {keys[key]!r})."
    return f"no key or group {key!r}. {_nearest_key(key, keys)}"


def _nearest_key(key: str, keys: dict[str, object]) -> str:
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    if "." not in key:
        return did_you_mean(key, [*groups, *(name for name in keys if "." not in name)])
    return did_you_mean(key, keys)


def _composes(config_name: str, overrides: list[str]) -> bool:
    try:
        _compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException):
        return False
    return True


def _compose(config_name: str, overrides: list[str]) -> DictConfig:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose(config_name, overrides=overrides)


def _keys(config_name: str, overrides: list[str]) -> dict[str, object]:
    """Every dotted key of the composed config with its raw value."""
    flat: dict[str, object] = {}

    def walk(node: object, prefix: str) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                flat[f"{prefix}{name}"] = child
                walk(child, f"{prefix}{name}.")

    walk(OmegaConf.to_container(_compose(config_name, overrides), resolve=False), "")
    return flat


def _say(text: str) -> None:
    print(text, file=sys.stderr)
