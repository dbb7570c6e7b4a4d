"""The metrics as `torchmetrics.Metric`: in anyone's LightningModule, on any number of processes.

    self.scores = MetricCollection([ImageAUROC(), ImageF1Max()])
    self.scores.update(prediction.score, batch["label"])   # in validation_step
    self.log_dict(self.scores)                             # computed once an epoch

Exact, on raw scores of any range, ties as one step. The states are the scores themselves, gathered
from all processes before they are ranked, so that several processes give what one does; images that
a sampler repeats to fill a batch count twice. One sort a metric: for every number of a test set at
once, and for more pixels than fit in memory, there is `evaluator.Evaluator`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from src.data.images import Region
from src.evaluation import overlap, ranking, uncertainty
from src.evaluation.pixels import PixelStore, region_sizes, saturating_weights
from src.evaluation.ranking import Ranking
from src.result import Prediction


class _Exact(Metric):
    """States are lists of flat float32 tensors: also of a process that has seen nothing."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    _names: ClassVar[tuple[str, ...]]
    _of: ClassVar[Callable[[Ranking], float]]

    def __init_subclass__(cls, of: Callable[[Ranking], float] | None = None) -> None:
        if of:
            cls._of = of

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self._names:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _keep(self, *values: Tensor) -> None:
        for name, value in zip(self._names, values, strict=True):
            getattr(self, name).append(value.detach().float().flatten())

    def _gathered(self) -> list[np.ndarray]:
        states = [getattr(self, name) for name in self._names]
        return [
            dim_zero_cat(s).cpu().numpy() if len(s) else np.empty(0, np.float32) for s in states
        ]

    def compute(self) -> Tensor:
        """The metric of all that came so far, a float64 scalar; NaN when a class is empty."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.tensor(self._value(*self._gathered()), dtype=dtype, device=self.device)

    def _value(self, *states: np.ndarray) -> float:
        raise NotImplementedError


class _Decided(_Exact):
    """Of the decision score > `threshold`, in raw units."""

    def __init__(self, threshold: float | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold: Any = threshold


class _OfImages(_Exact):
    _names = ("scores", "labels")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Scores (B,), higher is more anomalous, and labels (B,): 1 or True is defective."""
        self._keep(scores, labels)

    def _value(self, *states: np.ndarray) -> float:
        return type(self)._of(ranking.rank(*states))


class ImageAUROC(_OfImages, of=ranking.area_under_roc):
    """`test/image_auroc`."""


class ImageAP(_OfImages, of=ranking.area_under_precision):
    """`test/image_ap`."""


class ImageF1Max(_OfImages, of=ranking.f1_max):
    """`test/image_f1_max`."""


class ImageF1(_Decided, _OfImages):
    """`test/f1` of scores above `threshold`."""

    _rate = "test/f1"

    def _value(self, *states: np.ndarray) -> float:
        scores, labels = states
        return uncertainty.decision_rates(scores > self.threshold, labels)[self._rate].item()


class BalancedAccuracy(ImageF1):
    """`test/balanced_accuracy` of scores above `threshold`."""

    _rate = "test/balanced_accuracy"


class _OfPixels(_Exact):
    _names: ClassVar[tuple[str, ...]] = ("sizes", "scores", "marks")

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Anomaly maps (B, h, w) and ground truth (B, h, w), bool or 0/1, on one grid."""
        self._keep(self._sizes(maps, masks), maps, masks)

    def _sizes(self, maps: Tensor, masks: Tensor) -> Tensor:
        if maps.shape != masks.shape:
            raise ValueError(f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} differ")
        return torch.tensor(maps.shape[1:], device=maps.device).expand(len(maps), 2)

    def _value(self, *states: np.ndarray) -> float:
        shapes = states[0].reshape(-1, 2).astype(int)
        if not len(shapes):
            return math.nan
        ends = np.cumsum(shapes.prod(axis=1))[:-1]
        store = PixelStore(math.inf)
        images = zip(shapes, *(np.split(state, ends) for state in states[1:]), strict=True)
        for index, (shape, *parts) in enumerate(images):
            scores, marks, *saturated = (part.reshape(shape) for part in parts)
            store.add(index, scores, marks > 0, None, *saturated)
        return self._of_store(store)

    def _of_store(self, store: PixelStore) -> float:
        return type(self)._of(store.rank().pixels)


class PixelAUROC(_OfPixels, of=ranking.area_under_roc):
    """`test/pixel_auroc`."""


class PixelAP(_OfPixels, of=ranking.area_under_precision):
    """`test/pixel_ap`."""


class PixelF1Max(_OfPixels, of=ranking.f1_max):
    """`test/pixel_f1_max`."""


class AUPRO(_OfPixels):
    """`test/aupro`; `limit` is the false positive rate up to which the curve is integrated."""

    def __init__(self, limit: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limit = limit

    def _of_store(self, store: PixelStore) -> float:
        return overlap.area_under_overlap(store.rank().regions, self.limit)


class AUsPRO(AUPRO):
    """`test/auspro`: `AUPRO` of regions with saturation areas."""

    _names = (*_OfPixels._names, "saturated")

    def update(
        self, maps: Tensor, masks: Tensor, regions: Sequence[Sequence[Region]] | None = None
    ) -> None:
        """As `AUPRO`; with the regions of each image, else its connected ones, as large as found.

        A region marks pixels (h, w) of the mask.
        """
        shares = []
        for b, mask in enumerate(masks.bool().cpu().numpy()):
            weights = np.zeros(mask.shape)
            weights[mask] = 1 / region_sizes(mask)
            if regions:
                weights = saturating_weights(maps[b].float().cpu().numpy(), mask, regions[b])
            shares.append(weights)
        self._keep(self._sizes(maps, masks), maps, masks, torch.tensor(np.array(shares)))

    def _of_store(self, store: PixelStore) -> float:
        return overlap.area_under_overlap(store.rank().saturated, self.limit)


class AUPIMO(_OfPixels):
    """`test/aupimo`: mean over defective images; `bounds` are false positive rates."""

    def __init__(self, bounds: tuple[float, float] = overlap.BOUNDS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bounds = bounds

    def _of_store(self, store: PixelStore) -> float:
        found = overlap.image_overlaps(store, self.bounds)[store.defects > 0]
        return float(found.mean()) if found.size else math.nan


class PixelF1(_Decided, _OfPixels):
    """`test/pixel_f1` of maps above `threshold`."""

    def _of_store(self, store: PixelStore) -> float:
        return overlap.pixel_f1(*store.counts_above(self.threshold), store.defects)


class MeanIoU(_Decided, _OfPixels):
    """`test/miou` of maps above `threshold`; None: at the best threshold, `test/miou_oracle`."""

    def _of_store(self, store: PixelStore) -> float:
        if self.threshold is None:
            return overlap.best_mean_iou(store)
        counts = store.counts_above(self.threshold)
        return float(overlap.image_ious(*counts, store.defects).mean())


class CalibrationScores(_Exact):
    """Collects what a threshold is set with, while each process predicts its normal images.

    The maximum is taken over the map as the model made it: resizing averages, so no grid can show
    a higher value and the guarantee holds on all of them.
    """

    _names = ("index", "scores", "highest")

    def update(self, batch: Mapping[str, Tensor], prediction: Prediction) -> None:
        """Take the scores of a batch; indices of images are whole numbers below 2^24."""
        highest = prediction.anomaly_map.flatten(1).amax(dim=1)
        self._keep(batch["index"], prediction.score, highest)

    def compute(self) -> Tensor:
        """Score and highest value of the map (n, 2), by index; an image that came twice is one."""
        index, *table = self._gathered()
        rows = {image: row for row, image in enumerate(index.tolist())}
        return torch.from_numpy(np.stack(table, axis=1)[[rows[image] for image in sorted(rows)]])
