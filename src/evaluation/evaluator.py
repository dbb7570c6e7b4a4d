"""Test predictions in, metrics out: the only place that reads test labels and masks.

`update` keeps a few numbers an image and the scores of its pixels on one stated grid
(`evaluation.size`); `compute` gives every number from the tables of `ranking` and `pixels`. Pixel
metrics use images whose pixels are all known: normal ones, and defective ones with a mask that
still marks a pixel on the grid. What cannot be computed is left out or NaN, and `notes` says why.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from src.data.samples import DEFECTIVE, NORMAL, UNKNOWN, Sample
from src.data.transforms import ImageTransform
from src.errors import DataError
from src.evaluation import overlap, ranking, uncertainty
from src.evaluation.pixels import PixelHistograms, PixelStore
from src.evaluation.ranking import Counts
from src.evaluation.threshold import F1Oracle
from src.evaluation.uncertainty import rate_interval
from src.evaluation.view import View
from src.metrics import HIGH, LOW, PER_CATEGORY
from src.result import Curve, DefectRecall, Prediction, Threshold, own

CURVE_POINTS = 400
NAMES = 20  # file names in one sentence


class ImageRow(NamedTuple):
    """What is kept of one image besides its pixels."""

    label: int  # NORMAL, DEFECTIVE or UNKNOWN
    score: float
    map_max: float  # of the map as the model made it
    mask: str  # "known" | "missing" | "vanished" | "outside" | "on a normal image"
    pixels: tuple[int, int] | None = None  # marked, unseen: of a mask that may be cut off
    own_alarm: bool | None = None  # the method's own mask marks a pixel; None: it made none
    own_counts: tuple[int, int] | None = None  # true and false positive pixels of that mask
    category: str = ""  # which threshold decides, where there are several

    def decision(self, threshold: Threshold) -> bool:
        """Whether the image raises an alarm."""
        if threshold.own_mask:
            return own(self.own_alarm)
        return self.score > threshold.of(self.category).image


class Evaluator:
    """Collects predictions of test images and computes the metrics of `src.metrics`.

    `memory_gb` GiB of pixel scores are kept in memory, the rest in a temporary file; `resamples`
    of the bootstrap of pixel metrics, 0 leaves their intervals out; `limits` are false positive
    rates, 0..1, up to which PRO is integrated.
    """

    def __init__(
        self, view: View, *, memory_gb: float, resamples: int, limits: Sequence[float], seed: int
    ) -> None:
        self.view, self.resamples, self.seed = view, resamples, seed
        self.limits = {overlap.aupro_key(limit): limit for limit in limits}
        self._rows: dict[int, ImageRow] = {}
        self._pixels = PixelStore(memory_gb)

    def update(self, batch: Mapping[str, Tensor], prediction: Prediction) -> None:
        """Take a batch; a known image is dropped. DataError: a score or map value is not finite."""
        index, label = batch["index"].tolist(), batch["label"].tolist()
        scores = ranking.finite(prediction.score.float(), what="image scores").tolist()
        highest = prediction.anomaly_map.flatten(1).amax(dim=1).tolist()
        maps = self.view.maps(index, prediction.anomaly_map.float())
        within = self.view.within(index)
        masks = self.view.masks(index, batch["mask"])
        marked = batch["mask"].flatten(1).any(dim=1).tolist()
        by_method = prediction.mask
        detected = by_method if by_method is None else self.view.maps(index, by_method.float(), 0.0)
        for b, image in enumerate(index):
            if image in self._rows:
                continue
            pixels, kept = self.view.defect_pixels(image), None if within is None else within[b]
            mask = masks[b] if kept is None else masks[b] & kept
            state = mask_state(label[b], marked[b], bool(mask.any()), pixels)
            category = self.view.samples[image].category if self.view.samples else ""
            row = ImageRow(label[b], scores[b], highest[b], state, pixels, category=category)
            if by_method is not None and detected is not None:
                found = detected[b] > 0.5
                hits = int((found & mask).sum())
                counts = hits, int(found.sum()) - hits
                row = row._replace(own_alarm=bool(by_method[b].any()), own_counts=counts)
            self._rows[image] = row
            if state == "known":
                weights = self.view.saturating(image, maps[b], mask)
                self._pixels.add(image, maps[b], mask, kept, weights)

    def compute(self, threshold: Threshold, samples: Sequence[Sample] | None) -> dict[str, float]:
        """Every metric by its key in `src.metrics`, with the ends of its interval where it has one.

        `samples` names the defect types for `test/recall/<defect>`; None leaves these out.
        DataError: no image has a known label.
        """
        self._threshold = threshold
        scores, defect = self._labelled()
        alarms = np.array([row.decision(threshold) for row in self._known_rows().values()])
        defects, normals = int(defect.sum()), int((~defect).sum())
        table = ranking.rank(scores, defect)
        metrics = {
            "test/images_normal": float(normals),
            "test/images_defective": float(defects),
            "test/image_auroc": ranking.area_under_roc(table),
            "test/image_ap": ranking.area_under_precision(table),
            "test/image_f1_max": ranking.f1_max(table),
        }
        rates = uncertainty.decision_rates(alarms, defect)
        metrics |= {key: value.item() for key, value in rates.items()}
        metrics["test/image_auroc_delong"] = auroc = metrics["test/image_auroc"]
        _, low, high, _ = uncertainty.delong(scores, defect, [1])
        intervals = {
            "test/image_auroc": uncertainty.auroc_interval(auroc, defects, normals),
            "test/image_auroc_delong": uncertainty.Interval(max(low, 0.0), min(high, 1.0)),
            "test/recall": rate_interval(int(alarms[defect].sum()), defects),
            "test/false_alarm_rate": rate_interval(int(alarms[~defect].sum()), normals),
        }
        if samples is not None:
            recalls = self.defect_recalls(samples)
            metrics |= {f"test/recall/{row.defect}": row.found / row.total for row in recalls}
        known = [row.pixels for row in self._rows.values() if row.pixels]
        if known or self.has_masks:
            marked, unseen = np.sum([*known, (0, 0)], axis=0).tolist()
            metrics["test/unseen_defect_pixels"] = unseen / max(1, marked)
        if self.has_masks:
            counts = self._counts(threshold)
            metrics |= overlap.pixel_metrics(self._pixels, *counts, self.limits)
            if self.resamples:
                intervals |= uncertainty.pixel_intervals(
                    self._pixels, self.limits, self.resamples, self.seed
                )
        metrics |= self._by_category(threshold)
        for key, interval in intervals.items():
            if interval.low == interval.low:  # an undefined one is left out
                metrics |= {f"{key}{LOW}": interval.low, f"{key}{HIGH}": interval.high}
        return metrics

    def oracle_threshold(self) -> Threshold:
        """The threshold with the best F1 on these test images; needs both classes."""
        scores, defect = self._labelled()
        map_max = [row.map_max for row in self._known_rows().values()]
        pixels = self._pixels.rank().pixels if self.has_masks else None
        return F1Oracle().fit_oracle(scores, defect, map_max, pixels)

    @property
    def has_masks(self) -> bool:
        """Whether some defective image has a usable mask, so that pixel metrics exist."""
        return any(r.label == DEFECTIVE and r.mask == "known" for r in self._rows.values())

    def pixel_histograms(self) -> PixelHistograms:
        """Per-image score histograms, from which `compare` resamples images of two runs."""
        return self._pixels.histograms(uncertainty.HISTOGRAM_BINS)

    def curves(self) -> list[Curve]:
        """The curves that are defined here: roc and pr of images, pro of pixels."""
        drawn = []
        images = ranking.rank(*self._labelled())
        if not images.empty:
            drawn = [ranking.roc_curve(images), ranking.precision_recall_curve(images)]
        if self.has_masks and self.limits:
            regions = self._pixels.rank().regions
            drawn.append(overlap.overlap_curve(regions, max(self.limits.values())))
        return [curve.thinned(CURVE_POINTS) for curve in drawn]

    def per_image_rows(self) -> list[dict[str, Any]]:
        """One dict an image, by index: index, label, score, decision, map_max, iou and aupimo.

        At the threshold given to `compute`, which comes first; NaN where a metric is not defined.
        """
        threshold = self._threshold
        pixels: dict[int, tuple[float, float]] = {}
        if len(self._pixels):
            ious = overlap.image_ious(*self._counts(threshold), self._pixels.defects)
            found = ious.tolist(), overlap.image_overlaps(self._pixels).tolist()
            pixels = dict(zip(self._pixels.index.tolist(), zip(*found, strict=True), strict=True))
        return [
            {"index": index, "label": row.label, "score": row.score,
             "decision": row.decision(threshold), "map_max": row.map_max,
             "iou": iou, "aupimo": aupimo}
            for index, row in sorted(self._rows.items())
            for iou, aupimo in [pixels.get(index, (math.nan, math.nan))]
        ]  # fmt: skip

    def defect_recalls(self, samples: Sequence[Sample]) -> list[DefectRecall]:
        """Alarms by defect type, by name, at the threshold given to `compute`."""
        alarms: dict[str, list[bool]] = {}
        for index, row in self._known_rows().items():
            if row.label == DEFECTIVE:
                alarms.setdefault(samples[index].defect, []).append(row.decision(self._threshold))
        return [
            DefectRecall(name, sum(alarm), len(alarm), *rate_interval(sum(alarm), len(alarm)))
            for name, alarm in sorted(alarms.items())
        ]

    def notes(self) -> list[str]:
        """What was left out of the metrics and why, one sentence each."""
        labels = [row.label for row in self._rows.values()]
        rows, grid = self._known_rows(), "x".join(map(str, self.view.size or ["original"]))
        masks = [row.mask for row in rows.values()]
        files = (self.view.samples[i].image_path for i in rows if rows[i].mask == "outside")
        outside = ["/".join(path.parts[-2:]) for path in files]
        more = f" and {len(outside) - NAMES} more" if len(outside) > NAMES else ""
        counts = {
            "without a label: scored, not evaluated.": labels.count(UNKNOWN),
            "with a defect but no mask: left out of pixel metrics.":
                self.has_masks and masks.count("missing"),
            f"whose mask marks no pixel on the {grid} grid: left out of pixel metrics; a larger "
            "evaluation.size or evaluation.masks=nearest keeps them.": masks.count("vanished"),
            "with the whole defect outside the centre crop: left out of pixel metrics for that "
            f"reason, counted in image metrics ({', '.join(outside[:NAMES])}{more}). "
            "evaluation.whole_image=true counts such pixels as never found; transform.crop=null "
            "looks at all of an image.": len(outside),
            "labelled normal but masked: left out of pixel metrics.":
                masks.count("on a normal image"),
        }  # fmt: skip
        notes = [f"{n} image{'s' * (n != 1)} {text}" for text, n in counts.items() if n]
        if DEFECTIVE not in labels:
            notes.append("No defective test images: AUROC, AP, F1 and recall are undefined (NaN).")
        elif not self.has_masks:
            notes.append("No usable masks: pixel metrics are not computed.")
        if NORMAL not in labels:
            notes.append(
                "No normal test images: AUROC, AP, F1 and false alarms are undefined (NaN)."
            )
        return notes

    def _by_category(self, threshold: Threshold) -> dict[str, float]:
        """`PER_CATEGORY` of each of several categories, by its own threshold."""
        names = dict.fromkeys(row.category for row in self._known_rows().values())
        found: dict[str, float] = {}
        for name in names if len(names) > 1 else ():
            part = copy.copy(self)
            part.resamples = 0
            part._rows = {i: row for i, row in self._rows.items() if row.category == name}
            part._pixels = self._pixels.only(part._rows)
            metrics = part.compute(threshold.of(name), None)
            found |= {f"{key}/{name}": metrics[key] for key in PER_CATEGORY if key in metrics}
        return found

    def _known_rows(self) -> dict[int, ImageRow]:
        return {i: row for i, row in sorted(self._rows.items()) if row.label != UNKNOWN}

    def _labelled(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Score and truth of the images with a known label (n,), by index, n >= 1."""
        rows = self._known_rows()
        if not rows:
            what = "There is nothing to evaluate: no test image has a known label."
            do = "use `python -m src.predict` to score images without labels"
            raise DataError(what, found=f"{len(self._rows)} images, all without a label", do=do)
        scores = np.array([row.score for row in rows.values()], dtype=np.float32)
        defect = np.array([row.label == DEFECTIVE for row in rows.values()])
        return scores, defect

    def _counts(self, threshold: Threshold) -> tuple[Counts, Counts]:
        """True and false positive pixels per image (n,) of the mask at the threshold."""
        if not threshold.own_mask:
            rows = (self._rows[index] for index in self._pixels.index.tolist())
            return self._pixels.counts_above([threshold.of(row.category).pixel for row in rows])
        counts = [self._rows[index].own_counts for index in self._pixels.index.tolist()]
        tp, fp = np.array(counts, dtype=np.int64).reshape(-1, 2).T
        return tp, fp


def mask_state(
    label: int, marked: bool, marked_on_grid: bool, pixels: tuple[int, int] | None = None
) -> str:
    """Whether the pixels of an image are known; `pixels` are those of `View.defect_pixels`.

    A defect is `outside` when it is marked, but nowhere in the network's view, and `vanished`
    when it is too small for the grid or for the rule that resizes masks.
    """
    if label == NORMAL:
        return "on a normal image" if marked or marked_on_grid else "known"
    if label == UNKNOWN or not (marked or marked_on_grid or pixels):
        return "missing"
    if marked_on_grid:
        return "known"
    return "vanished" if pixels is None or pixels[1] < pixels[0] else "outside"


def build_evaluator(
    cfg: DictConfig, transform: ImageTransform, samples: Sequence[Sample], roi: Tensor | None = None
) -> Evaluator:
    """The evaluator of the config group `evaluation` for images of this geometry.

    `roi`: the pixels (H, W) of the network's view that count; None: all.
    """
    options = cfg.evaluation
    view = View(
        options.size, transform, samples,
        whole_image=options.whole_image, rule=options.masks, roi=roi,
    )  # fmt: skip
    return Evaluator(
        view, memory_gb=options.memory_gb, resamples=options.bootstrap,
        limits=options.aupro_limits, seed=cfg.seed,
    )  # fmt: skip
