"""What to say when a program fails: the mistake in its words, or the trouble of the machine."""

import errno
import shlex
import sys
import traceback
from collections.abc import Collection, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from src.composing import CONF, compose, is_group, split_words
from src.errors import ConfigError, GoodpartsError, chain, did_you_mean, nearest, root_of
from src.grammar import hydra_words, quoted
from src.options import keys_of, problem_of

USER_ERROR = 2
#: Of a full disk; the writers of safetensors and torch have words for it, but no errno.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_SIGNS = ("os error 28", "os error 122", "unexpected pos", "PytorchStreamWriter failed")
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
BUG = "This is a bug or a broken machine, not your configuration: please report it."


def explain(error: BaseException, config_name: str, arguments: Sequence[str]) -> int:
    """Print what went wrong and what to do to the standard error; the exit code."""
    root = root_of(error)
    mistake = root if isinstance(root, GoodpartsError) else None
    of_words = isinstance(error, HydraException | OmegaConfBaseException)
    said: object = mistake or _machine_trouble(error, config_name)
    if said is None and of_words:
        said = explain_overrides(arguments, config_name) or _told(error)
    if said is None:
        traceback.print_exception(error)
    print(BUG if said is None else f"Error: {said}", file=sys.stderr)
    return USER_ERROR if mistake or of_words else 1


def _machine_trouble(error: BaseException, config_name: str) -> GoodpartsError | None:
    """Advice for a full disk, a folder without permission, or too little memory."""
    text = f"{type(error).__name__}: {error}"
    has_out = "\nout:" in (CONF / f"{config_name}.yaml").read_text()
    place = "give out=FOLDER" if has_out else "set RUNS_DIR to a folder"
    if any(getattr(e, "errno", 0) in _FULL or any(s in str(e) for s in _FULL_SIGNS)
           for e in chain(error)):  # fmt: skip
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


def _told(error: BaseException) -> str:
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
    if several and not many:
        own = given[words.index(several[0])]
        command = shlex.join(["python", "-m", f"src.{config_name}", "-m", *arguments])
        alone = f"give one value, and call src.{config_name} once for each"
        found, do = f"{own} without -m", f"add -m: {command}" if config_name == "run" else alone
        return ConfigError(f"{own} holds several values, and this is one run.", found=found, do=do)
    if several:
        return None
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
        return ConfigError(f"{own!r} is not of the form key=value.", found=_told(error), do=better)
    return None


def _wrong_choice(word: str) -> ConfigError | None:
    """An unknown file of a group of conf/."""
    override = _parse(word)
    group = CONF / override.key_or_group
    if not group.is_dir() or override.is_sweep_override() or override.is_delete():
        return None
    options, value = [path.stem for path in group.glob("*.yaml")], override.value()
    for name in value if isinstance(value, list) else [value]:
        if name is not None and str(name) not in options:
            what = f"There is no {override.key_or_group} named {str(name)!r}."
            return ConfigError(what, found=word, do=did_you_mean(str(name), options))
    return None


def _nearest_key(key: str, keys: Collection[str]) -> str:
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    ends = [name for name in keys if name.endswith(f".{key}")]
    if "." in key or ends:
        return did_you_mean(key, ends or keys)
    near = nearest(key, [*groups, *(name for name in keys if "." not in name)])
    lasts = {name.rpartition(".")[2]: name for name in keys}
    near = near or [lasts[last] for last in nearest(key, lasts)]
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else did_you_mean(key, groups)
