"""Sentences of the report: what was measured, with which labels, and what it promises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from src.metrics import HEADLINES
from src.reporting.records import ImageResult, ProtocolFacts, ThresholdFacts
from src.result import realised_rate_limit

_METHODS = {"patchcore": "PatchCore", "uflow": "U-Flow", "haloae": "HaloAE", "crn": "CRN"}
_FIXED = {
    "f1_oracle": "Chosen with the labels of these very test images so that F1 is highest: an "
    "oracle. It shows what the scores would allow, not what a detector in use would reach.",
    "nfa": "A region is marked when fewer than one region as rare as it is expected in an image "
    "of pure noise (number of false alarms below 1), and one marked region is an alarm.",
}
_NFA_SHIFTED = (
    "log NFA was shifted until no region of the held-out normal images is marked. That promises no "
    "level for parts to come: where they are exchangeable with n held-out ones, 1 in n + 1 alarms "
    "on average over draws of these; measured on the test folders of four real sets, good parts "
    "alarmed from never to four times as often (docs/uflow_threshold.md)."
)
_NFA_PLAIN = (
    "Nothing was calibrated and nothing is promised: the latent noise of real images is neither "
    "independent nor standard normal. Measured on four real sets with small features, log10 NFA < "
    "0 alarmed on 133 of 141 good parts (docs/uflow_threshold.md)."
)
_REPEATING = (
    "The same seed gives the same numbers on the same CPU with the same package versions; "
    "`python -m src.run replay=RUN` checks it. Another processor rounds differently, which "
    "training amplifies, and on a GPU some operations have no deterministic form: compare such "
    "numbers by their spread over seeds, not digit by digit."
)
_SPACE = "\N{NO-BREAK SPACE}"  # keeps numbers and units on one line


def method_title(name: str) -> str:
    """How its paper writes a method."""
    return _METHODS.get(name, name)


def number(value: float | None, unit: str = "") -> str:
    """A metric as text: four decimals for shares, three digits for times, words for NaN."""
    if value is None or math.isnan(value):
        return "not defined"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if unit or abs(value) >= 10:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        return f"{text} {unit}".strip()
    return f"{value:.4f}"


def share(value: float) -> str:
    """A probability in percent with as many digits as it needs."""
    return f"{100 * value:.3g}{_SPACE}%"


def score(value: float | None) -> str:
    """A score or threshold with four significant digits."""
    if value is None or math.isnan(value):
        return "not a number"
    return f"{value:.4g}" if math.isfinite(value) else number(value)


def alarm_rule(threshold: ThresholdFacts, score_name: str) -> str:
    """The decision as a formula."""
    if threshold.rule == "nfa":
        return "log10 NFA < 0 somewhere in the image"
    return f"{score_name} > {score(threshold.image)}"


def threshold_sentences(threshold: ThresholdFacts, calibration: str = "") -> list[str]:
    """What the threshold rests on and what it promises; `calibration` as in ProtocolFacts."""
    if threshold.rule == "conformal":
        approximate = "leave-one" in calibration.replace(" ", "-").lower()
        note = "With leave-one-image-out scores the promise holds approximately."
        return _conformal(threshold) + ([note] if approximate else [])
    if threshold.rule == "quantile":
        return _quantile(threshold)
    if threshold.rule == "nfa":
        return [_FIXED["nfa"], _NFA_SHIFTED if "shift" in calibration else _NFA_PLAIN]
    if threshold.rule in _FIXED:
        return [_FIXED[threshold.rule]]
    used = "used test labels" if threshold.oracle else "used no test label"
    return [f"Set by the rule {threshold.rule!r}, which {used}."]


def _conformal(facts: ThresholdFacts) -> list[str]:
    sentences = [f"Set from the scores of {_images(facts.n, 'normal')}; no defect, no test label."]
    if facts.alpha is None:
        return sentences
    reached = facts.alpha if facts.attained is None else facts.attained
    if reached <= facts.alpha:
        return [
            *sentences,
            f"Promise: on average over calibrations, {share(facts.alpha)} of good parts or less "
            f"raise a false alarm, if parts in use and calibration images come from the same "
            f"source. {_this_one(facts, reached)}",
        ]
    needed = math.ceil(1 / facts.alpha - 1e-9) - 1
    return [
        *sentences,
        f"{share(facts.alpha)} was asked for, but {_images(facts.n)} can promise no less than "
        f"{share(reached)} on average: the highest calibration score became the threshold. "
        f"{needed} images are needed for {share(facts.alpha)}. "
        f"{_this_one(facts, reached)}",
    ]


def _this_one(facts: ThresholdFacts, average: float) -> str:
    limit = share(realised_rate_limit(facts.n, average))
    return (
        f"One calibration may be worse: with {_images(facts.n)}, 95 of 100 calibrations stay at "
        f"or below {limit} false alarms."
    )


def _quantile(facts: ThresholdFacts) -> list[str]:
    level = "" if facts.alpha is None else f" that {share(1 - facts.alpha)} of them do not exceed"
    promise = "" if facts.attained is None else (
        f" Without correction for the number of images: {share(facts.attained)} false alarms on "
        f"average. {_this_one(facts, facts.attained)}"
    )  # fmt: skip
    return [f"The score{level}, over {_images(facts.n, 'normal')}; no test label.{promise}"]


def checkpoint_choice(protocol: str, metrics: Mapping[str, float]) -> str:
    """Which images chose the epoch of a trained method; empty: there was nothing to choose."""
    if protocol == "paper":
        return "best on the test set, as in the paper"
    images = metrics.get("val/images")
    if images is None:
        return ""
    if not images:
        return "the last epoch; too few normal images to choose another by"
    return (
        f"epoch {metrics['val/nll_epoch']:.0f}, the likeliest for {_images(int(images), 'normal')} "
        "that neither trained nor set the threshold"
    )


def protocol_facts(
    protocol: ProtocolFacts, threshold: ThresholdFacts, images: Sequence[ImageResult]
) -> list[tuple[str, str]]:
    """Rows of the protocol box: a purpose and which images and labels served it."""
    good = sum(row.label == 0 for row in images)
    bad = sum(row.label == 1 for row in images)
    unknown = len(images) - good - bad
    tested = f"{good} normal and {bad} defective images"
    tested += f", {unknown} without a label" if unknown else ""
    rows = [("Training", f"{_images(protocol.train_images, 'normal')}; no defect and no mask.")]
    if protocol.selection:
        rows.append(("Checkpoint", protocol.selection))
    if protocol.calibration:
        rows.append(("Calibration", protocol.calibration))
    rows.append(("Test", f"{tested}. {_labels_sentence(protocol, threshold)}"))
    if protocol.pixels:
        rows.append(("Pixels", f"{protocol.pixels[:1].upper()}{protocol.pixels[1:]}."))
    rows.append(("Repeating", _REPEATING))
    return rows + [("Note", note) for note in protocol.notes]


def _labels_sentence(protocol: ProtocolFacts, threshold: ThresholdFacts) -> str:
    if protocol.name == "paper":
        return (
            "Protocol of the paper: its own selection rule was followed, test labels included. "
            "Compare these numbers with the paper's, not with those of a detector in use."
        )
    if threshold.oracle:
        return (
            "Their labels also chose the threshold, so every number that needs one is optimistic."
        )
    return "Their labels and masks were read for the metrics on this page and chose nothing."


def headline_tiles(
    metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], device: str
) -> list[dict[str, str]]:
    """The tiles at the top: name, value, interval, explanation. `device` took the times."""
    tiles = []
    for metric in HEADLINES:
        key = metric.key
        if key not in metrics:
            continue
        low, high = intervals.get(key, (math.nan, math.nan))
        known = math.isfinite(low) and math.isfinite(high)
        tiles.append({
            "name": metric.name,
            "value": number(metrics[key], metric.unit),
            "interval": _interval(low, high) if known else "",
            "meaning": f"{metric.headline} {device}" if metric.unit == "ms" else metric.headline,
        })  # fmt: skip
    return tiles


def _interval(low: float, high: float) -> str:
    return f"95{_SPACE}%{_SPACE}interval {low:.4f}{_SPACE}to{_SPACE}{high:.4f}"


def _images(count: int, kind: str = "") -> str:
    return f"{count} {kind + ' ' if kind else ''}image{'' if count == 1 else 's'}"
