"""The metrics of where: every pixel metric of a test set under its key, and their intervals."""

from __future__ import annotations

from collections.abc import Mapping

from src.errors import ConfigError
from src.evaluation import overlap, ranking, uncertainty
from src.evaluation.pixels import PixelRanking, PixelStore
from src.evaluation.ranking import Counts
from src.evaluation.uncertainty import Interval

#: Bins of the per-image histograms behind the intervals of pixel metrics: off by less than 0.001.
HISTOGRAM_BINS = 1024


def aupro_key(limit: float) -> str:
    """`test/aupro` for the customary limit 0.3, `test/aupro_05` for 0.05."""
    if not 0 < limit <= 1:
        raise ConfigError(
            "evaluation.aupro_limits must lie above 0 and not above 1.",
            found=str(limit),
            do="use evaluation.aupro_limits=[0.3,0.05]",
        )
    return "test/aupro" if limit == 0.3 else f"test/aupro_{100 * limit:02.0f}"


def localisation_metrics(
    store: PixelStore, ranked: PixelRanking, tp: Counts, fp: Counts, limits: Mapping[str, float]
) -> dict[str, float]:
    """Pixel metrics by key.

    Args:
        store: pixels of all images, at least one of them with a defective pixel.
        ranked: its tables.
        tp: true positive pixels per image (n,) at the chosen threshold.
        fp: false positive pixels per image (n,) at the chosen threshold.
        limits: AUPRO keys and the false positive rates they stand for.
    """
    defects = store.defects
    good = defects == 0
    metrics = {
        "test/pixel_auroc": ranking.area_under_roc(ranked.pixels),
        "test/pixel_auroc_defective_only": ranking.area_under_roc(ranked.pixels_inside),
        "test/pixel_ap": ranking.area_under_precision(ranked.pixels),
        "test/pixel_f1_max": ranking.best_f1(ranked.pixels).f1,
        "test/miou": float(overlap.image_ious(tp, fp, defects).mean()),
        "test/miou_oracle": store.best_mean_iou(ranked.pixels.value).mean_iou,
        "test/iou_pooled": overlap.pooled_iou(tp, fp, defects),
        "test/mask_false_alarm_rate": ranking.ratio(int((fp[good] > 0).sum()), int(good.sum())),
    }
    for key, limit in limits.items():
        metrics[key] = overlap.area_under_overlap(ranked.regions, limit)
        inside = overlap.area_under_overlap(ranked.regions_inside, limit)
        metrics[f"{key}_defective_only"] = inside
    return metrics


def localisation_intervals(
    store: PixelStore, limits: Mapping[str, float], resamples: int, seed: int
) -> dict[str, Interval]:
    """95 % intervals of pixel AUROC, AP and AUPRO by key; images are resampled, not pixels."""
    defect = store.defects > 0
    weights = uncertainty.drawn_images(defect, resamples, seed)
    resampled = uncertainty.pixel_metrics(store.histograms(HISTOGRAM_BINS), weights, limits)
    images = int(min(defect.sum(), (~defect).sum()))
    return {key: uncertainty.logit_interval(values, images) for key, values in resampled.items()}
