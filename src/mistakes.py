"""What to say when a program fails: the mistake in its words, or the trouble of the machine."""

from __future__ import annotations

import errno
import shlex
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from src.composing import CONF, compose, is_group, split_words
from src.errors import ConfigError, GoodpartsError, did_you_mean, nearest, root_of
from src.grammar import hydra_words, quoted
from src.options import keys_of, problem_of

USER_ERROR = 2
BUG = "This is a bug or a broken machine, not your configuration: please report it."


def explain(error: BaseException, config_name: str, arguments: Sequence[str]) -> int:
    """Print what went wrong and what to do to the standard error; the exit code."""
    root = root_of(error)
    mistake = root if isinstance(root, GoodpartsError) else None
    of_words = isinstance(error, HydraException | OmegaConfBaseException)
    said: object = mistake or _machine_trouble(error, config_name)
    if said is None and of_words:
        said = explain_overrides(arguments, config_name) or _first_lines(error)
    if said is None:
        traceback.print_exception(error)
    print(BUG if said is None else f"Error: {said}", file=sys.stderr)
    return USER_ERROR if mistake or of_words else 1


def _machine_trouble(error: BaseException, config_name: str) -> str | None:
    """Advice for a full disk, a folder without permission, or too little memory."""
    text = f"{type(error).__name__}: {error}"
    place = "give out=FOLDER" if _has_out(config_name) else "set RUNS_DIR to a folder"
    if any(_disk_full(link) for link in _chain(error)):
        return (
            f"The disk is full.\n  found: {text}\n"
            f"  do:    free some space, or {place} on another disk; run the same command again"
        )
    if isinstance(error, OSError) and error.errno in (
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST,
    ):  # fmt: skip
        return (
            f"A file or folder may not be read or written.\n  found: {text}\n"
            f"  do:    check its permissions, or {place} of your own"
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


def _disk_full(error: BaseException) -> bool:
    """Also in the words of the writers of safetensors and torch, which have no errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    signs = ("os error 28", "os error 122", "unexpected pos", "PytorchStreamWriter failed")
    return any(sign in str(error) for sign in signs)


def _has_out(config_name: str) -> bool:
    return "\nout:" in (CONF / f"{config_name}.yaml").read_text()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, latest first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _first_lines(error: BaseException) -> str:
    return "\n  ".join(line for line in str(error).splitlines() if line.strip())


def explain_overrides(arguments: Sequence[str], config_name: str) -> ConfigError | None:
    """What is wrong with words that do not compose; None: nothing that can be told."""
    _, given, many = split_words(arguments)
    words = hydra_words(given, many=many)
    for own, word in zip(given, words, strict=True):
        if problem := _wrong_form(own, word) or _wrong_choice(word):
            return problem
    pairs = zip(given, words, strict=True)
    several = [own for own, word in pairs if _parse(word).is_sweep_override()]
    groups = [word for word in words if is_group(word) and not _parse(word).is_sweep_override()]
    try:
        defaults = compose(config_name, groups)
    except (HydraException, OmegaConfBaseException):
        return None
    keys = [key for key, _ in keys_of(defaults)]
    known = any(is_group(word) for word in several)  # keys of other groups than the default ones
    for word in words:
        key = _parse(word).key_or_group
        if word[0] not in "+~" and not is_group(word) and key not in keys and not known:
            return ConfigError(
                f"There is no key or group {key!r}.", found=word, do=_nearest_key(key, keys)
            )
    if several:
        return None if many else _without_m(several[0], arguments, config_name)
    values = [_parse(word) for word in words if not is_group(word) and word[0] not in "+~"]
    problems = (problem_of(each.key_or_group, each.value(), defaults) for each in values)
    return next(filter(None, problems), None)


def _parse(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _wrong_form(own: str, word: str) -> ConfigError | None:
    try:
        _parse(word)
    except HydraException as error:
        key, sign, value = own.partition("=")
        better = shlex.quote(f"{key}={quoted(value)}") if sign else "write key=value, as in seed=1"
        return ConfigError(
            f"{own!r} is not of the form key=value.", found=_first_lines(error), do=better
        )
    return None


def _wrong_choice(word: str) -> ConfigError | None:
    """An unknown file of a group of conf/."""
    override = _parse(word)
    group = CONF / override.key_or_group
    if not group.is_dir() or override.is_sweep_override() or override.is_delete():
        return None
    options = [path.stem for path in group.glob("*.yaml")]
    value = override.value()
    for name in value if isinstance(value, list) else [value]:
        if name is not None and str(name) not in options:
            return ConfigError(
                f"There is no {override.key_or_group} named {str(name)!r}.",
                found=word,
                do=did_you_mean(str(name), options),
            )
    return None


def _without_m(word: str, arguments: Sequence[str], config_name: str) -> ConfigError:
    command = shlex.join(["python", "-m", f"src.{config_name}", "-m", *arguments])
    alone = f"give one value, and call src.{config_name} once for each"
    return ConfigError(
        f"{word} holds several values, and this is one run.",
        found=f"{word} without -m",
        do=f"add -m: {command}" if config_name == "run" else alone,
    )


def _nearest_key(key: str, keys: Collection[str]) -> str:
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    ends = [name for name in keys if name.endswith(f".{key}")]
    if "." in key or ends:
        return did_you_mean(key, ends or keys)
    near = nearest(key, [*groups, *(name for name in keys if "." not in name)])
    lasts = {name.rpartition(".")[2]: name for name in keys}
    near = near or [lasts[last] for last in nearest(key, lasts)]
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else did_you_mean(key, groups)
