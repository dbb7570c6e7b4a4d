"""What each option may be: the composed config is checked against its defaults, once, at the start.

An option takes values of the type that its schema declares (src/composing.py), or else of the kind
of its default; RULES adds ranges. What fits nowhere is refused with the nearest valid value.
"""

import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import ConfigError, nearest
from src.grammar import LISTS, NAMES, PATHS

_TRUE, _FALSE = {"true", "yes", "on", "y", "1"}, {"false", "no", "off", "n", "0"}


@dataclass(frozen=True)
class Rule:
    """What fits an option: in words, as a test, and the value that a wrong one was meant to be."""

    words: str
    fits: Callable[[Any], bool]
    meant: Callable[[str], object] = lambda found: None  # None or ValueError: nothing is near


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number from `low` to `high`."""
    top = math.inf if high is None else high
    return Rule(
        f"a whole number {f'of at least {low}' if high is None else f'from {low} to {high}'}",
        lambda x: _whole(x) and low <= x <= top,
        lambda found: int(min(max(_value(found), low), top)),
    )


def share(words: str, low: float = 0, high: float = 1) -> Rule:
    """A share of a whole, 1 being all of it; what lies above 1 was meant as per cent."""

    def meant(found: str) -> str | None:
        value = _value(found)
        value = value / 100 if 1 < value <= 100 else value
        return f"{value:g}" if 0 < value <= high else None

    return Rule(f"a number {words}", lambda x: _number(x) and low <= x <= high, meant)


def choice(*names: str) -> Rule:
    """One of a few words."""

    def meant(found: str) -> str | None:
        near = [name for name in names if name.startswith(found)] or nearest(found, names)
        return near[0] if near else None

    return Rule(f"one of {', '.join(names)}", lambda x: x in names, meant)


def several(item: Rule, words: str = "", count: int | None = None) -> Rule:
    """A list, every item of which fits."""

    def fits(x: Any) -> bool:
        return isinstance(x, list) and count in (None, len(x)) and all(map(item.fits, x))

    return Rule(words or f"a list [a,b,...], each {item.words}", fits)


def either(*rules: Rule) -> Rule:
    """What fits any of the rules."""
    words = ", or ".join(rule.words for rule in rules)
    return Rule(words, lambda x: any(rule.fits(x) for rule in rules), rules[0].meant)


def _whole(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _number(x: object) -> bool:
    return _whole(x) or (isinstance(x, float) and math.isfinite(x))


def _value(found: str) -> float:
    """The number a text was meant to be: '10%' is 0.1; ValueError: none."""
    return float(found.removesuffix("%")) / (100 if found.endswith("%") else 1)


TEXT = Rule("text", lambda x: isinstance(x, str), lambda found: f"'{found}'")
PATH = Rule("a path (./null for a folder of that name)", lambda x: isinstance(x, str) and x != "")
BOOLEAN = Rule("true or false", lambda x: isinstance(x, bool))
WHOLE = Rule("a whole number", _whole, lambda found: round(_value(found)))
NUMBER = Rule("a number", _number, _value)
NULL = Rule("null", lambda x: x is None)
POSITIVE = Rule(
    "a number of at least 0",
    lambda x: _number(x) and x >= 0,
    lambda found: f"{max(_value(found), 0):g}",
)
PAIR = several(whole(1), "[height,width]", 2)

#: By key, or by its last part. null fits where it is the default, and where NULLABLE says so.
RULES: Mapping[str, Rule] = {
    name: rule
    for rule, names in (
        (TEXT, " ".join(NAMES)),
        (PATH, " ".join(PATHS)),
        (either(TEXT, several(TEXT)), " ".join([*LISTS, "overrides"])),
        (whole(1), """batch_size shots at_least limit_test samples_per_epoch limit decoders workers
            count threads num_nodes window resamples side step milliseconds max_side cells nprobe
            log_every_n_steps checkpoint_every_n_epochs checkpoint_keep_every_n_epochs size train
            check_val_every_n_epoch neighbors target_dim pretrain_dim projection_dim parity.images
            data.synthetic.test_normal data.synthetic.test_defective"""),
        (whole(0), """max_images latency_images bootstrap pictures test_normal test_defective
            retries num_sanity_val_steps model.judge.resamples"""),
        (POSITIVE, """limit_train_batches val_check_interval gradient_clip_val limit_gb memory_gb
            sigma lr foreground memory_budget_gb stop_radius file_megabytes watch_seconds
            watch_idle_seconds"""),
        (share("of at least 0 and below 1", high=math.nextafter(1, 0)), "fraction test_fraction"),
        (share("above 0 and not above 1", low=math.ulp(0)),
            "ratio alpha q top_share false_discoveries references"),
        (share("from 0 to 1"), "contamination"),
        (whole(-1), "max_epochs max_steps"),
        (either(whole(1), PAIR), "resize crop"),
    )
    for name in names.split()
} | {
    "curve.shots": several(either(whole(1), choice("all"))),
    "data.rotations": either(whole(2, 360), several(NUMBER)),
    "threshold.alpha": share("above 0 and below 1", math.ulp(0), math.nextafter(1, 0)),
    "evaluation.size": either(whole(1), choice("original")),
    "evaluation.masks": choice("nearest", "eroded"),
    "evaluation.aupro_limits": several(share("above 0 and not above 1", low=math.ulp(0))),
    "data.view.resize": either(whole(1), PAIR, choice("auto")),
    "model.search.window": whole(0),
    "camera_size": several(whole(8), "[height,width], each of at least 8", 2),
    "format": choice("onnx", "openvino", "torch"),
    "save.maps": choice("none", "npy", "png"),
    "animation.format": choice("gif", "webp"),
    "extras": several(choice("numbers", "maps", "pictures", "arrays")),
    "folds": whole(2),
    "backbone.precision": choice("float32", "bfloat16", "float16"),
    "calibration.method": choice("cross", "leave_one_out"),
    "seed": whole(0, 2**32 - 1),
    "seeds": either(whole(0), several(whole(0))),
    "port": whole(1, 65535),
    "num_workers": either(whole(0), choice("auto")),
    "devices": either(
        Rule("a whole number but 0 (-1: all)", lambda x: _whole(x) and (x > 0 or x == -1)),
        choice("auto"), several(whole(0)),
    ),
    "device": Rule(
        "auto, cpu, gpu or cuda, or one GPU such as cuda:1",
        lambda x: isinstance(x, str) and bool(re.fullmatch(r"auto|cpu|mps|(gpu|cuda)(:\d+)?", x)),
    ),
    "hardware.accelerator": choice("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "logger.names": several(choice("csv", "tensorboard", "wandb")),
    "logger.wandb.mode": choice("online", "offline", "disabled"),
    "hardware.precision": choice(
        "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"
    ),
    "protocol": choice("honest", "paper"),
    "data.synthetic.size": whole(64),
    "transform.mean": several(NUMBER, "[r,g,b], three numbers", 3),
    "transform.std": several(
        Rule("", lambda x: _number(x) and x > 0), "[r,g,b], three numbers above 0", 3
    ),
    "data.cache": choice("auto", "memory", "none"),
    "data.pairing": choice("name", "position"),
    "data.bit_depth": either(whole(8, 32), choice("auto")),
    "interpolation": choice("nearest", "bilinear", "bicubic", "lanczos"),
}  # fmt: skip

NULLABLE = {"crop", "folds", "log_images_every_n_epochs", "num_workers", "animation.format",
            "samples_per_epoch", "bit_depth", "checkpoint_keep_every_n_epochs"}  # fmt: skip


def check_options(cfg: DictConfig, defaults: DictConfig) -> DictConfig:
    """The composed config as plain values; `defaults`: without values of the command line."""
    checked = plain(cfg)
    for key, found in keys_of(checked):
        if isinstance(found, dict) and found:
            continue  # its parts are checked
        if found == "???":
            raise ConfigError(f"{key} is needed.", found="no value", do=f"add {key}=...")
        if problem := problem_of(key, found, defaults):
            raise problem
        if not isinstance(found, bool) and _is_boolean(defaults, key, found):
            OmegaConf.update(checked, key, is_true(str(found)))
    return checked


def keys_of(cfg: DictConfig) -> list[tuple[str, Any]]:
    """Every dotted key of a config with its plain value, interpolations as they stand."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, child in node.items():
            yield f"{prefix}{name}", child
            if isinstance(child, dict):
                yield from walk(child, f"{prefix}{name}.")

    return list(walk(OmegaConf.to_container(cfg), ""))


def plain(cfg: DictConfig) -> DictConfig:
    """A config without its schemas, as a run folder keeps it; choices are texts."""
    values = OmegaConf.to_container(cfg, enum_to_str=True)
    return cast(DictConfig, OmegaConf.create(values, flags={"struct": True}))


def problem_of(key: str, found: Any, defaults: DictConfig) -> ConfigError | None:
    """What is wrong with a value of an option, if anything; see `check_options`."""
    if "${" in str(found) or _is_boolean(defaults, key, found):
        return None  # the former refers to another option, which is checked itself
    (node, _, name), default = key.rpartition("."), _default(defaults, key)
    kind = OmegaConf.get_type(OmegaConf.select(defaults, node)) if node else None
    declared = get_type_hints(kind).get(name, Any) if is_dataclass(kind) else Any
    if isinstance(default, dict) and default:
        parts = ", ".join(f"{key}.{part}" for part in sorted(default))
        rule: Rule | None = Rule(f"set by its parts: {parts}", lambda x: False)
    else:
        rule = RULES.get(key) or RULES.get(name) or _rule_of(declared) or _rule_like(default)
    nothing = default is None or bool({key, name} & NULLABLE) or NoneType in get_args(declared)
    if rule is None or (found is None and nothing) or rule.fits(found):
        return None
    try:
        value = None if found is None else rule.meant(str(found))
    except ValueError:
        value = None
    value = default if value is None and rule.fits(default) else value
    do = f"leave {key} out" if value is None else shlex.quote(_word(key, value))
    return ConfigError(f"{key} must be {rule.words}.", found=_word(key, found), do=do)


def is_true(word: str) -> bool:
    """Whether a text is one of the spellings of true."""
    return word.lower() in _TRUE


def _default(defaults: DictConfig, key: str) -> Any:
    """The default, or what it refers to; None where that cannot be told."""
    try:
        value = OmegaConf.select(defaults, key)
    except OmegaConfBaseException:
        return None
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, enum_to_str=True)
    return value


def _is_boolean(defaults: DictConfig, key: str, found: Any) -> bool:
    return isinstance(_default(defaults, key), bool) and str(found).lower() in _TRUE | _FALSE


def _rule_of(declared: Any) -> Rule | None:
    """The rule that a type is; None: anything, or what Hydra alone can tell."""
    origin, inner = get_origin(declared), get_args(declared)
    if origin is list:
        item = _rule_of(inner[0])
        return several(item) if item else None
    if origin in (Union, UnionType):
        rules = [_rule_of(kind) for kind in inner]
        return either(*(rule for rule in rules if rule)) if all(rules) else None
    if isinstance(declared, type) and issubclass(declared, Enum):
        return choice(*declared.__members__)
    return {bool: BOOLEAN, int: WHOLE, float: NUMBER, str: TEXT, NoneType: NULL}.get(declared)


def _rule_like(default: Any) -> Rule | None:
    """The rule of values of the kind of a default."""
    if not isinstance(default, list):
        return None if default is None else _rule_of(type(default))
    same = (rule for rule in (several(TEXT), several(NUMBER)) if default and rule.fits(default))
    return next(same, several(Rule("anything", lambda x: True), "a list [a,b,...]"))


def _word(key: str, value: object) -> str:
    """`key=value` as on the command line."""
    if value is None or isinstance(value, bool | list):
        value = str(value).lower().replace("none", "null").replace(" ", "")
    return f"{key}={value}"
