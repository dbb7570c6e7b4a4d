"""Sentences of the report and the console: what was measured, and what it promises."""

import math
from collections import Counter
from collections.abc import Mapping

from src.data.samples import DEFECTIVE, NORMAL, UNKNOWN
from src.evaluation.threshold import Deciding, OperatingPoint, images_needed
from src.metrics import HEADLINES, HIGH, LOW, METRICS, PER_CATEGORY
from src.reporting.records import ReportData
from src.result import Calibration, Threshold

_METHODS = {"patchcore": "PatchCore", "uflow": "U-Flow", "haloae": "HaloAE", "crn": "CRN"}
_ORACLE = (
    "Chosen with the labels of these very test images so that F1 is highest: an oracle. It shows "
    "what the scores would allow, not what a detector in use would reach."
)
_NFA = (
    "A region is marked when fewer than one region as rare as it is expected in an image of pure "
    "noise (number of false alarms below 1), and one marked region is an alarm."
)
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
#: What is known of thresholds set in each way; see Barber, Candes, Ramdas, Tibshirani, Predictive
#: inference with the jackknife+, Annals of Statistics 2021, theorems 2 and 4.
_GUARANTEE = {
    Calibration.held_out: "This is proven (split conformal prediction) for parts that are "
    "exchangeable with the calibration images: same product, camera and light.",
    Calibration.cross: "Each image was scored by a model made without its fold. In simulation on "
    "exchangeable parts the rate comes near that. Proven is less: at most twice the rate plus "
    "\N{SQUARE ROOT}(2/n), and only where the models of all folds score a new part (CV+, Barber et "
    "al. 2021); this detector scores it by one model of all images, for which no bound is proven.",
    Calibration.leave_one_out: "Each image was scored without its own rows in a memory that was "
    "chosen with it. Such scores come out too high, so that on exchangeable parts a memory bank "
    "alarms less often than this and finds fewer defects. Nothing is proven; calibration.method="
    "cross comes nearer.",
}
CATEGORY_NAMES = tuple(METRICS[key].name for key in PER_CATEGORY)
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


def interval(metrics: Mapping[str, float], key: str) -> str:
    """The 95 % interval of a metric as text; nothing without one."""
    low, high = (metrics.get(f"{key}{end}", math.nan) for end in (LOW, HIGH))
    return f"{low:.4f}{_SPACE}to{_SPACE}{high:.4f}" if math.isfinite(low + high) else ""


def category_rows(metrics: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Name and `PER_CATEGORY` of each category and their mean; none of a detector of one."""
    first = f"{PER_CATEGORY[0]}/"
    names = [key.removeprefix(first) for key in metrics if key.startswith(first)]
    values = [[metrics.get(f"{key}/{name}", math.nan) for key in PER_CATEGORY] for name in names]
    means = [sum(column) / len(names) for column in zip(*values, strict=True)]
    pairs = zip([*names, "mean"], [*values, means], strict=True) if names else []
    return [(name, *map(number, row)) for name, row in pairs]


def share(value: float) -> str:
    """A probability in percent with as many digits as it needs."""
    return f"{100 * value:.3g}{_SPACE}%"


def score(value: float) -> str:
    """A score or threshold with four significant digits."""
    if math.isnan(value):
        return "not a number"
    return f"{value:.4g}" if math.isfinite(value) else number(value)


def alarm_rule(threshold: Threshold) -> str:
    """The decision as a formula."""
    if threshold.rule == "nfa":
        return "log10 NFA < 0 somewhere in the image"
    return f"anomaly score > {score(threshold.image)}"


def threshold_sentences(threshold: Threshold, calibration: Calibration | None) -> list[str]:
    """What the threshold rests on and what it promises."""
    if threshold.rule == "nfa":
        return [_NFA, _NFA_SHIFTED if calibration is Calibration.held_out else _NFA_PLAIN]
    if threshold.rule == "f1_oracle":
        return [_ORACLE]
    if threshold.rule not in ("conformal", "quantile"):
        used = "used test labels" if threshold.oracle else "used no test label"
        return [f"Set by the rule {threshold.rule!r}, which {used}."]
    said = _conformal(threshold) if threshold.rule == "conformal" else [_quantile(threshold)]
    said += [] if calibration is None else [_GUARANTEE[calibration]]
    if threshold.attained_limit is not None:
        proof = "" if calibration is Calibration.held_out else ", were they held out,"
        said.append(
            f"One calibration may be worse: with {_images(threshold.n)}{proof} 95 of 100 "
            f"calibrations stay at or below {share(threshold.attained_limit)} false alarms."
        )
    return said


def _conformal(facts: Threshold) -> list[str]:
    basis = f"Set from the scores of {_images(facts.n, 'normal')}; no defect, no test label."
    if facts.alpha is None or facts.attained is None:
        return [basis]
    promise = (
        f"Aim: on average over calibrations, {share(facts.alpha)} of good parts or less raise a "
        "false alarm."
    )
    if facts.attained > facts.alpha:
        promise = (
            f"{share(facts.alpha)} was asked for, but {_images(facts.n)} can promise no less than "
            f"{share(facts.attained)} on average: the highest calibration score became the "
            f"threshold. {images_needed(facts.alpha)} images are needed for {share(facts.alpha)}."
        )
    return [basis, promise]


def _quantile(facts: Threshold) -> str:
    level = "" if facts.alpha is None else f" that {share(1 - facts.alpha)} of them do not exceed"
    basis = f"The score{level}, over {_images(facts.n, 'normal')}; no test label."
    if facts.attained is None:
        return basis
    rate = f"{share(facts.attained)} false alarms on average"
    return f"{basis} Without correction for the number of images: {rate}."


def aim(threshold: Threshold, calibration: Calibration | None) -> str:
    """The false alarms that a threshold aims at and the ground for it, for one line of text."""
    if threshold.attained is None or threshold.attained_limit is None:
        return ""
    proof = "" if calibration is Calibration.held_out else ", not proven"
    how = f" by {calibration.replace('_', ' ')} scores{proof}" if calibration else ""
    return (
        f"aims at {100 * threshold.attained:.2g} % false alarms on average, up to "
        f"{100 * threshold.attained_limit:.2g} % with these {threshold.n} images (95 %){how}"
    )


def point_texts(point: OperatingPoint) -> tuple[str, str, str, str, str]:
    """Cells of a table of thresholds: alpha, threshold, promise, defects found, false alarms."""
    impossible = "" if point.possible else " (not possible)"
    found, wrong = (
        f"{part} of {whole} ({100 * part / whole:.0f}{_SPACE}%)" if whole else "-"
        for part, whole in ((point.found, point.defective), (point.false_alarms, point.normal))
    )
    return (f"{share(point.alpha)}{impossible}", score(point.threshold), share(point.attained),
            found, wrong)  # fmt: skip


def deciding_sentence(decides: Deciding) -> str:
    """Which picture set the threshold, and what would hold without it."""
    text = f"Threshold {score(decides.score)} comes from {decides.path}"
    if decides.lower is not None:
        level = f"{100 * decides.attained:.2g}"
        text += f"; without it {score(decides.lower)}, alpha {level}{_SPACE}%"
    if decides.above:
        named = ", ".join(f"{path} ({score(value)})" for path, value in decides.above[:3])
        text += f". Above it: {named}{', ...' if len(decides.above) > 3 else ''}"
    return f"{text}."


def checkpoint_choice(protocol: str, metrics: Mapping[str, float]) -> str:
    """Which images chose the weights of a trained method; empty: there was nothing to choose."""
    if protocol == "paper":
        return "best on the test set, as in the paper"
    images = metrics.get("val/images")
    if images is None:
        return ""
    if not images:
        return "the last weights; too few normal images to choose others by"
    return (
        f"step {metrics['val/kept_step']:.0f}, the latest that is not clearly worse than the best "
        f"at finding obstructed copies of {_images(int(images), 'normal')}; these neither trained "
        "nor set the threshold"
    )


def protocol_rows(data: ReportData) -> list[tuple[str, str]]:
    """Rows of the protocol box: a purpose and which images and labels served it."""
    protocol, oracle = data.protocol, data.threshold.oracle
    count = Counter(row.label for row in data.images)
    tested = f"{count[NORMAL]} normal and {count[DEFECTIVE]} defective images"
    tested += f", {count[UNKNOWN]} without a label" if count[UNKNOWN] else ""
    shifted = " shift log NFA" if data.threshold.rule == "nfa" else ""
    calibration = {
        None: "test labels (oracle)" if oracle else "none",
        Calibration.held_out: f"{protocol.held_out} held-out normal images{shifted}",
        Calibration.cross: "cross-calibration: each training image by a model without its fold",
        Calibration.leave_one_out: "leave-one-image-out on the training images",
    }
    use = "Their labels and masks were read for the metrics on this page and chose nothing."
    if protocol.name == "paper":
        use = (
            "Protocol of the paper: its own selection rule was followed, test labels included. "
            "Compare these numbers with the paper's, not with those of a detector in use."
        )
    elif oracle:
        use = "Their labels also chose the threshold, so every number that needs one is optimistic."
    rows = {
        "Training": f"{_images(protocol.train_images, 'normal')}; no defect and no mask.",
        "Checkpoint": protocol.selection,
        "Calibration": calibration[protocol.calibration],
        "Test": f"{tested}. {use}",
        "Pixels": protocol.pixels and f"{protocol.pixels[0].upper()}{protocol.pixels[1:]}.",
        "Repeating": _REPEATING,
    }
    return [(purpose, text) for purpose, text in rows.items() if text]


def headline_tiles(data: ReportData, device: str) -> list[dict[str, str]]:
    """The tiles at the top: name, value, interval, explanation. `device` took the times."""
    tiles = []
    for metric in HEADLINES:
        if metric.key in data.metrics:
            ends = interval(data.metrics, metric.key)
            tiles.append({
                "name": metric.name,
                "value": number(data.metrics[metric.key], metric.unit),
                "interval": ends and f"95{_SPACE}%{_SPACE}interval {ends}",
                "meaning": metric.headline + (f" {device}" if metric.unit == "ms" else ""),
            })  # fmt: skip
    return tiles


def _images(count: int, kind: str = "") -> str:
    return f"{count} {kind + ' ' if kind else ''}image{'' if count == 1 else 's'}"
