"""Words of the command line as Hydra must read them: a path is a path, whatever it is called.

In Hydra's grammar `=`, `(`, `#`, `[7]` and letters beyond ASCII mean something. So the value of
every key below is quoted; an existing path is taken whole, Hydra's own quotes stay untouched.
"""

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

#: Keys that hold a path. `null` is no path (./null is one); with `-m` a comma separates paths.
PATHS = frozenset({
    "backbone.weights", "calibration.dir", "checkpoints", "data.abnormal_dir", "data.mask_dir",
    "data.normal_dir", "data.normal_test_dir", "data.roi", "data.root", "file", "folder", "image",
    "images", "model.cache.folder", "model.weights", "out", "replay", "run", "run_a", "run_b",
    "runs", "runs_dir", "sweeps_dir", "tables_dir",
})  # fmt: skip
#: Keys that hold a free name: `0`, `1e5` and `null` are names too; a comma separates names.
NAMES = frozenset({
    "data.category", "logger.wandb.entity", "logger.wandb.group", "logger.wandb.project", "name",
})  # fmt: skip
#: Keys that hold one of the above or a [list] of them.
LISTS = frozenset({
    "backbone.weights", "categories", "checkpoints", "data.abnormal_dir", "data.category",
    "data.exclude",
})  # fmt: skip

_WORD = re.compile(r"(\+{0,2})([\w./@]+)=(.*)", re.DOTALL)
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ITEM = re.compile(rf"\s*({_QUOTED}|\[[^\]]*\]|[^,]*?)\s*(?:,|$)", re.DOTALL)
_SWEEP = re.compile(r"(choice|glob|range)\(.*\)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_WORDS_OF_HYDRA = ("true", "false", "null", "nan", "inf")


def hydra_words(words: Sequence[str], *, many: bool) -> list[str]:
    """The words with the values of PATHS, NAMES and LISTS quoted; `many`: a multirun (`-m`)."""
    root = next((word[10:] for word in words if word.startswith("data.root=")), "")
    places = ["", os.path.expanduser(root)]  # noqa: PTH111  what lies below data.root is meant too
    return [_hydra_word(word, places, many=many) for word in words]


def quoted(text: str) -> str:
    """A value that Hydra and OmegaConf read as this very text."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS_OF_HYDRA:
        return text
    # Hydra reads a backslash as itself, unless it stands before a quote
    text = re.sub(r"(\\*)('|$)", lambda hit: hit[1] * 2 + ("\\'" if hit[2] else ""), literal(text))
    return f"'{text}'"


def literal(value: Any) -> Any:
    """Texts, also inside lists and dictionaries, in which OmegaConf sees no `${interpolation}`."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    return [literal(item) for item in value] if isinstance(value, list) else value


def _hydra_word(word: str, places: Iterable[str], *, many: bool) -> str:
    found = _WORD.fullmatch(word)
    if not found or found[2] not in PATHS | NAMES | LISTS:
        return word
    plus, key, value = found.groups()
    path = os.path.expanduser(value)  # noqa: PTH111  a Path would drop a last slash
    # os.path: False for names that no file can have, where Path.exists raises
    there = any(os.path.exists(os.path.join(place, path)) for place in places)  # noqa: PTH110, PTH118
    if key in PATHS and there:
        value = quoted(path)
    elif _SWEEP.fullmatch(value) and many:
        pass
    elif many or (key in NAMES and not value.startswith("[")):
        value = ",".join(_one(key, item) for item in _items(value))
    else:
        value = _one(key, value)
    return f"{plus}{key}={value}"


def _one(key: str, value: str) -> str:
    """One value: a list where the key takes lists, else text."""
    if not value or re.fullmatch(_QUOTED, value, re.DOTALL) or (value == "null" and key in PATHS):
        return value
    if key in LISTS and re.fullmatch(r"\[.*\]", value, re.DOTALL):
        return f"[{','.join(_one(key, item) for item in _items(value[1:-1]))}]"
    return quoted(os.path.expanduser(value) if key in PATHS else value)  # noqa: PTH111


def _items(text: str) -> list[str]:
    """The parts between commas; a comma in quotes or brackets separates nothing."""
    return [item for item in _ITEM.findall(text)[: text.count(",") + 1] if item]
