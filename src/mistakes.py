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
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
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


def _machine_trouble(error: BaseException, config_name: str) -> GoodpartsError | None:
    """Advice for a full disk, a folder without permission, or too little memory."""
    text = f"{type(error).__name__}: {error}"
    has_out = "\nout:" in (CONF / f"{config_name}.yaml").read_text()
    place = "give out=FOLDER" if has_out else "set RUNS_DIR to a folder"
    if any(_disk_full(link) for link in _chain(error)):
        what = "The disk is full."
        do = f"free some space, or {place} on another disk; run the same command again"
    elif isinstance(error, OSError) and error.errno in _DENIED:
        what = "A file or folder may not be read or written."
        do = f"check its permissions, or {place} of your own"
    elif isinstance(error, MemoryError) or "OutOfMemory" in text or "allocate memory" in text:
        what = "There is not enough memory."
        do = (
            "lower data.batch_size, set model.memory_budget_gb for PatchCore, use a smaller "
            "transform.crop, or hardware.precision=bf16-mixed on a GPU"
        )
    elif "DataLoader worker" in text:
        what = (
            "A process that decodes images was killed, mostly because memory or shared memory "
            "ran out."
        )
        do = (
            "lower hardware.num_workers (0 needs none) or data.batch_size; run the same command "
            "again"
        )
    else:
        return None
    return GoodpartsError(what, found=text.splitlines()[0], do=do)


def _disk_full(error: BaseException) -> bool:
    """Also in the words of the writers of safetensors and torch, which have no errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    signs = ("os error 28", "os error 122", "unexpected pos", "PytorchStreamWriter failed")
    return any(sign in str(error) for sign in signs)


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
    parsed = {word: _parse(word) for word in words}
    several = [word for word in words if parsed[word].is_sweep_override()]
    groups = [word for word in words if is_group(word) and word not in several]
    try:
        defaults = compose(config_name, groups)
    except (HydraException, OmegaConfBaseException):
        return None
    keys = [key for key, _ in keys_of(defaults)]
    known = any(is_group(word) for word in several)  # keys of other groups than the default ones
    values = {w: parsed[w] for w in words if not is_group(w) and w[0] not in "+~"}
    for word, override in values.items():
        if (key := override.key_or_group) not in keys and not known:
            return ConfigError(
                f"There is no key or group {key!r}.", found=word, do=_nearest_key(key, keys)
            )
    if several:
        own = given[words.index(several[0])]
        return None if many else _without_m(own, arguments, config_name)
    problems = (problem_of(o.key_or_group, o.value(), defaults) for o in values.values())
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
