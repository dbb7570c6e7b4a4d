"""The options of pixel statistics, key for key as in conf/model/pixel_statistics.yaml."""

from dataclasses import dataclass

from src.models.map_options import ResidualOptions


@dataclass
class PixelStatisticsOptions(ResidualOptions):
    """`model` of pixel statistics; the residual is the image itself."""
