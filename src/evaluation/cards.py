"""What each metric means, in one paragraph: `python -m src.evaluation.cards test/aupro`."""

from __future__ import annotations

import sys
import textwrap
from types import MappingProxyType

from src.errors import ConfigError, GoodpartsError, did_you_mean

_CARDS = {
    "test/image_auroc": """
        Probability that a random defective test image scores higher than a random normal one; equal
        scores count half. Raw scores, exact, no sigmoid. 0.5 is guessing; below 0.5 the score is
        inverted (it is never flipped). NaN without normal or without defective images.""",
    "test/image_ap": """
        Average precision of the image score: sum over distinct scores, highest first, of precision
        times the gain in recall. Steps, no interpolation (scikit-learn's definition); equal scores
        are one step. Guessing gives the share of defective images. NaN if a class is empty.""",
    "test/image_f1_max": """
        The best F1 of the image decision over all thresholds. It chooses the threshold with test
        labels: an upper bound of test/f1, not what a deployed threshold reaches. NaN if a class is
        empty.""",
    "test/precision": """
        Share of defective images among the alarms (score > chosen threshold). NaN without an
        alarm or when nothing is labelled.""",
    "test/recall": """
        Share of defective images that raise an alarm at the chosen threshold. NaN without
        defective images. test/recall/<defect> is the same for one defect type. The interval is
        Wilson's.""",
    "test/f1": """
        2TP / (2TP + FP + FN) of the image decision at the chosen threshold. NaN without defective
        images.""",
    "test/false_alarm_rate": """
        Share of normal test images that raise an alarm at the chosen threshold. The conformal rule
        promises at most alpha on average over calibration sets. NaN without normal images. The
        interval is Wilson's.""",
    "test/mask_false_alarm_rate": """
        Share of normal test images on which the chosen pixel threshold marks at least one pixel of
        the grid.""",
    "test/pixel_auroc": """
        AUROC of single pixels of all usable test images, good ones included, on the grid
        evaluation.size. Pixels are not independent and nearly all are normal: values near 1 are
        common, compare AUPRO and AP. test/pixel_auroc_defective_only leaves good images out.""",
    "test/unseen_defect_pixels": """
        Share of the pixels marked in the masks, as they lie on disk, that the centre crop cuts off,
        over all defective test images with a mask. No pixel metric counts them, unless
        evaluation.whole_image=true. 0 without a crop.""",
    "test/pixel_ap": """
        Average precision of single pixels, same pixels as test/pixel_auroc, same definition as
        test/image_ap. Guessing gives the share of defective pixels, often below 0.05.""",
    "test/pixel_f1_max": """
        The best F1 of single pixels over all thresholds; chooses its threshold with test masks.""",
    "test/aupro": """
        Area under the per-region overlap curve up to a false positive rate of 0.3, divided by 0.3.
        Overlap: mean over all 8-connected ground-truth regions of the share detected, so small
        defects count as much as large ones. False positive rate: over all normal pixels of all
        usable test images, good ones included. Every distinct score is a threshold, points are
        joined by straight lines and the last is interpolated at the limit. Guessing gives 0.15.
        NaN without regions. test/aupro_05 integrates to 0.05. test/aupro_defective_only takes
        normal pixels of defective images only, as the PatchCore repository does.""",
    "test/miou": """
        Intersection over union of (map > chosen pixel threshold) and the mask, per image, averaged
        over usable test images. A good image counts 1 when nothing is marked and 0 otherwise
        (U-Flow's definition), so a detector that never fires scores the share of good images.""",
    "test/miou_oracle": """
        test/miou at the best of all thresholds, found exactly on the test set: an upper bound.""",
    "test/iou_pooled": """
        Intersection over union of all pixels of all usable test images thrown together, at the
        chosen pixel threshold. Large defects dominate.""",
}  # fmt: skip

#: Definition of every metric that has one, by key.
CARDS = MappingProxyType({name: " ".join(text.split()) for name, text in _CARDS.items()})

#: What every metric of pixels depends on besides the maps; each table says how it was chosen.
_CONVENTION = (
    " Pixels: of the part of an image that the network sees (transform.crop of transform.resize), "
    "or with evaluation.whole_image=true of the whole image, where unseen pixels have the lowest "
    "of all scores; on a grid of evaluation.size pixels, maps resized bilinearly; masks by "
    "evaluation.masks: nearest neighbour, or eroded as by the official PatchCore code. An image "
    "whose whole defect is cut off is left out, by name, and stays in image metrics."
)
_OF_PIXELS = ("pixel_", "aupro", "miou", "iou_", "mask_")

_INTERVAL = (
    " This is the {end} end of its 95 % interval: Newcombe's score interval for image AUROC, "
    "Wilson's for rates, percentiles of resampled images for pixel metrics."
)


def explain(name: str) -> str:
    """The definition of a metric by its key; ends of intervals and defect types included.

    Raises:
        ConfigError: there is no such metric; the message names the nearest.
    """
    key = name if name.startswith("test/") else f"test/{name}"
    for suffix, end in (("_ci_low", "lower"), ("_ci_high", "upper")):
        if key.endswith(suffix):
            return explain(key.removesuffix(suffix)) + _INTERVAL.format(end=end)
    base = "test/recall" if key.startswith("test/recall/") else key
    base = base.removesuffix("_defective_only")
    base = "test/aupro" if base.startswith("test/aupro_") and base[-2:].isdigit() else base
    if base not in CARDS:
        raise ConfigError(
            "There is no such metric.",
            found=name,
            do=did_you_mean(base, CARDS),
        )
    return CARDS[base] + (_CONVENTION if of_pixels(base) else "")


def of_pixels(key: str) -> bool:
    """Whether a metric depends on the view, the grid and the rule for masks."""
    return key.removeprefix("test/").startswith(_OF_PIXELS)


def main(names: list[str]) -> int:
    """Print the cards of `names`, or all of them; returns the exit code."""
    try:
        cards = {name: explain(name) for name in names or CARDS}
    except GoodpartsError as error:
        print(error, file=sys.stderr)
        return 2
    for name, text in cards.items():
        print(f"{name}\n{textwrap.fill(text, 96, initial_indent='  ', subsequent_indent='  ')}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
