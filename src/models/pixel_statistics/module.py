"""The floor: how unusual is each pixel for its place? No backbone, nothing learnt but statistics.

Mean and spread of every blurred pixel over the training images; the most unusual pixel scores the
image. It needs parts in a fixed pose. A method that does not beat it has not earned its training.
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from src.models.base import AnomalyModule
from src.models.pixel_statistics.options import PixelStatisticsOptions
from src.models.residuals import ResidualStatistics, image_score, refuse_backbone
from src.result import Calibration, NormalScores, Prediction


class PixelStatistics(AnomalyModule):
    """Standardised residual of pixels; see `ResidualStatistics`."""

    Options: ClassVar[type] = PixelStatisticsOptions
    facts = ("held_out",)
    single_pass = True

    def __init__(
        self,
        backbone: nn.Module | None,
        image_size: tuple[int, int],
        options: PixelStatisticsOptions,
    ) -> None:
        super().__init__()
        refuse_backbone("Pixel statistics", backbone)
        self.backbone = None
        self.options = options
        self.statistics = ResidualStatistics(3, image_size, options)
        self.held_out: list[list[float]] = []  # image score and highest place of each

    def configure_optimizers(self) -> None:
        """None."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Never called (`trainer.limit_train_batches: 0`); see `after_fit`."""

    @torch.no_grad()
    def after_fit(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """Mean and spread of the training images at each pixel; then each against the others."""
        self.held_out = []
        self.statistics.fit(batch["image"].to(self.device) for batch in loader)
        for batch in loader:
            anomaly_map = self.statistics(batch["image"].to(self.device), measured=True)
            score = image_score(anomaly_map, self.options)
            self.held_out += torch.stack([score, anomaly_map.amax((1, 2))], dim=1).tolist()

    def held_out_scores(self) -> NormalScores | None:
        """Scores of the training images, each by the statistics of the others: exact, no bias."""
        if not self.held_out:
            return None
        image, map_max = torch.tensor(self.held_out).unbind(dim=1)
        return NormalScores(image, map_max, Calibration.leave_one_out)

    def forward(self, image: Tensor) -> Prediction:
        """Images (B, 3, H, W) -> scores (B,) and maps (B, H, W), in spreads."""
        anomaly_map = self.statistics(image)
        return Prediction(image_score(anomaly_map, self.options), anomaly_map)
