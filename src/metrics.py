"""Every number of a run: its key, what a person calls it, what it means, which way is better.

`python -m src.metrics aupro` prints a card. Reports list every metric that is computed; the console
shows those with a `headline`. Papers' tables and the ranks of methods show those that they name.
"""

import re
import sys
import textwrap
from dataclasses import dataclass

from src.errors import ConfigError, GoodpartsError, did_you_mean


@dataclass(frozen=True)
class Metric:
    """One number of a run."""

    key: str  # in metrics.json
    name: str  # for people
    meaning: str  # its definition, in a paragraph
    headline: str = ""  # one clause under the number where it stands out; empty: it does not
    unit: str = ""  # empty: a share, 0..1
    lower_is_better: bool = False
    of_pixels: bool = False  # depends on the view, the grid and the rule for masks


_METRICS = (
    Metric("test/image_auroc", "Image AUROC", """
        Probability that a random defective test image scores higher than a random normal one; equal
        scores count half. Raw scores, exact, no sigmoid. 0.5 is guessing; below 0.5 the score is
        inverted (it is never flipped). NaN without normal or without defective images.
        test/image_auroc_delong is the same number with DeLong's interval, for comparison with other
        work: it is too narrow near 1, and [1, 1] when the classes do not overlap.""",
        headline="chance that a defective image scores above a normal one"),
    Metric("test/pixel_auroc", "Pixel AUROC", """
        AUROC of single pixels of all usable test images, good ones included, on the grid
        evaluation.size. Pixels are not independent and nearly all are normal: values near 1 are
        common, compare AUPRO and AP. test/pixel_auroc_defective_only leaves good images out.""",
        headline="chance that a defective pixel scores above a normal one", of_pixels=True),
    Metric("test/aupro", "AUPRO", """
        Area under the per-region overlap curve up to a false positive rate of 0.3, divided by 0.3.
        Overlap: mean over all 8-connected ground-truth regions of the share detected, so small
        defects count as much as large ones. False positive rate: over all normal pixels of all
        usable test images, good ones included. Every distinct score is a threshold, points are
        joined by straight lines and the last is interpolated at the limit. Guessing gives 0.15.
        NaN without regions. test/aupro_05 integrates to 0.05. test/aupro_defective_only takes
        normal pixels of defective images only, as the PatchCore repository does.""",
        headline="share of each defect covered, up to 30 % false pixels", of_pixels=True),
    Metric("test/unseen_defect_pixels", "Never seen", """
        Share of the pixels marked in the masks, as they lie on disk, that the centre crop cuts off,
        over all defective test images with a mask. No pixel metric counts them, unless
        evaluation.whole_image=true. 0 without a crop.""",
        headline="share of the defect pixels that the centre crop cuts off", lower_is_better=True),
    Metric("test/miou", "Mean IoU", """
        Intersection over union of (map > chosen pixel threshold) and the mask, per image, averaged
        over usable test images. A good image counts 1 when nothing is marked and 0 otherwise
        (U-Flow's definition), so a detector that never fires scores the share of good images.""",
        headline="overlap of prediction and mask at the threshold", of_pixels=True),
    Metric("test/recall", "Recall", """
        Share of defective images that raise an alarm at the chosen threshold. NaN without
        defective images. test/recall/<defect> is the same for one defect type.""",
        headline="share of defective images found at the threshold"),
    Metric("test/false_alarm_rate", "False alarms", """
        Share of normal test images that raise an alarm at the chosen threshold. The conformal rule
        promises at most alpha on average over calibration sets. NaN without normal images.""",
        headline="share of normal images that raised an alarm", lower_is_better=True),
    Metric("test/f1", "F1", """
        2TP / (2TP + FP + FN) of the image decision at the chosen threshold (ClassF1 of MVTec AD 2).
        test/image_f1_max is its oracle. NaN without defective images.""",
        headline="of the image decision at the threshold"),
    Metric("test/image_f1_max", "Best F1", """
        The best F1 of the image decision over all thresholds. It chooses the threshold with test
        labels: an upper bound of test/f1, not what a deployed threshold reaches. NaN if a class is
        empty.""", headline="over all thresholds; needs labels, so an upper bound"),
    Metric("test/image_ap", "Image AP", """
        Average precision of the image score: sum over distinct scores, highest first, of precision
        times the gain in recall. Steps, no interpolation (scikit-learn's definition); equal scores
        are one step. Guessing gives the share of defective images. NaN if a class is empty."""),
    Metric("test/precision", "Precision", """
        Share of defective images among the alarms (score > chosen threshold). NaN without an
        alarm or when nothing is labelled."""),
    Metric("test/balanced_accuracy", "Balanced accuracy", """
        Mean of recall and of the share of normal images without an alarm, at the chosen threshold:
        guessing and constant answers give 0.5 whatever the share of defects. NaN if a class is
        empty."""),
    Metric("test/mask_false_alarm_rate", "Marked good images", """
        Share of normal test images on which the chosen pixel threshold marks at least one pixel of
        the grid.""", lower_is_better=True, of_pixels=True),
    Metric("test/pixel_ap", "Pixel AP", """
        Average precision of single pixels, same pixels as test/pixel_auroc, same definition as
        test/image_ap. Guessing gives the share of defective pixels, often below 0.05.""",
        of_pixels=True),
    Metric("test/pixel_f1", "Pixel F1", """
        2TP / (2TP + FP + FN) of single pixels of all usable test images thrown together, at the
        chosen pixel threshold (SegF1 of MVTec AD 2). test/pixel_f1_max is its oracle.""",
        of_pixels=True),
    Metric("test/pixel_f1_max", "Best pixel F1", """
        The best F1 of single pixels over all thresholds; chooses its threshold with test masks.""",
        of_pixels=True),
    Metric("test/auspro", "AUsPRO", """
        As test/aupro with saturated overlap (sPRO, MVTec LOCO AD): a region counts as found when
        its saturation area is, that of one object for a missing object that may lie in many places.
        Regions are those of the mask files, their areas those of defects_config.json; on a grid of
        another size they keep their share of the region. test/auspro_05 integrates to 0.05, the
        usual limit. Left out when no image has saturation areas: it is AUPRO then.""",
        of_pixels=True),
    Metric("test/aupimo", "AUPIMO", """
        Per defective image the share of its defective pixels that is found, averaged over the
        logarithm of the false positive rate between 1e-5 and 1e-4; then the mean over images. The
        rate is the mean over normal images of the share of their pixels at or above the threshold,
        so nearly nothing may be marked there. Every distinct score is a threshold, points are
        joined over the logarithm. test/aupimo_median and test/aupimo_p10 are of the same images,
        scores.csv has each. NaN without normal images, or where no threshold reaches a rate above 0
        and not above 1e-5: with fewer than 100 000 normal pixels, or many at the highest score.""",
        of_pixels=True),
    Metric("test/miou_oracle", "Best mean IoU", """
        test/miou at the best of all thresholds, found exactly on the test set: an upper bound.""",
        of_pixels=True),
    Metric("test/iou_pooled", "Pooled IoU", """
        Intersection over union of all pixels of all usable test images thrown together, at the
        chosen pixel threshold. Large defects dominate.""", of_pixels=True),
    Metric("test/images_normal", "Normal images", "Test images labelled normal.", unit="images"),
    Metric("test/images_defective", "Defective images", "Test images labelled defective.",
           unit="images"),
    Metric("speed/latency_p50_ms", "Latency", """
        Median time from a normalised image to its score and map on the CPU, one image at a time,
        after two that warm up. Decoding is not included.""",
        headline="median time of one image on", unit="ms", lower_is_better=True),
    Metric("speed/latency_p95_ms", "Latency, 95th percentile", """
        As speed/latency_p50_ms: one image in twenty takes longer.""",
        unit="ms", lower_is_better=True),
    Metric("speed/images_per_second", "Throughput", """
        One divided by the mean time of an image, measured as speed/latency_p50_ms.""",
        unit="images/s"),
    Metric("fit/seconds", "Time to fit", "Wall time of learning, from the first image to the last.",
           unit="s", lower_is_better=True),
    Metric("fit/peak_memory_mb", "Peak memory", """
        Highest memory up to the end of learning: of the GPU when one is in use, else of the
        process.""", unit="MB", lower_is_better=True),
)  # fmt: skip

#: Every metric by its key, in the order in which tables show them.
METRICS = {metric.key: metric for metric in _METRICS}
_NODES = {key.split("/")[0] for key in METRICS}
HEADLINES = tuple(metric for metric in _METRICS if metric.headline)

#: What every metric of pixels depends on besides the maps; each table says how it was chosen.
_CONVENTION = (
    " Pixels: of the part of an image that the network sees (transform.crop of transform.resize), "
    "or with evaluation.whole_image=true of the whole image, where unseen pixels have the lowest "
    "of all scores; on a grid of evaluation.size pixels, or those of the original images, maps "
    "resized bilinearly; masks by "
    "evaluation.masks: nearest neighbour, or eroded as by the official PatchCore code. An image "
    "whose whole defect is cut off is left out, by name, and stays in image metrics."
)
_INTERVAL = (
    " This is the {end} end of its 95 % interval: Newcombe's score interval for image AUROC, "
    "Wilson's for rates, percentiles of resampled images for pixel metrics."
)
LOW, HIGH = "_ci_low", "_ci_high"  # endings of the keys of an interval
_VARIANT = re.compile(
    rf"({LOW}|{HIGH}|_defective_only|(?<=auroc)_delong|(?<=pro)_\d+|(?<=pimo)_(median|p10))+$"
)
#: Of a detector of several categories also measured for each, as test/aupro/bottle.
PER_CATEGORY = tuple(
    f"test/{x}" for x in ["image_auroc", "pixel_auroc", "aupro", "recall", "false_alarm_rate"]
)


def find_metric(name: str) -> Metric:
    """The metric of a key, with or without `test/`; test/aupro_05, test/recall/hole included.

    ConfigError: there is no such metric; the message names the nearest.
    """
    node, _, rest = name.partition("/")
    node, rest = (node, rest) if node in _NODES else ("test", name)
    key = _VARIANT.sub("", f"{node}/{rest.split('/')[0]}")
    if key not in METRICS:
        raise ConfigError("There is no such metric.", found=name, do=did_you_mean(key, METRICS))
    return METRICS[key]


def metric_card(name: str) -> str:
    """The definition of a metric by its key; ends of intervals and defect types included."""
    metric = find_metric(name)
    text = " ".join(metric.meaning.split()) + (_CONVENTION if metric.of_pixels else "")
    for ending, end in ((LOW, "lower"), (HIGH, "upper")):
        text += _INTERVAL.format(end=end) if name.endswith(ending) else ""
    return text


def main(names: list[str]) -> int:
    """Print the cards of `names`, or all of them; returns the exit code."""
    try:
        cards = {name: metric_card(name) for name in names or METRICS}
    except GoodpartsError as error:
        print(error, file=sys.stderr)
        return 2
    for name, text in cards.items():
        print(f"{name}\n{textwrap.fill(text, 96, initial_indent='  ', subsequent_indent='  ')}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
