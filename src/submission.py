"""What a benchmark wants of images whose labels it keeps (MVTec AD 2, https://benchmark.mvtec.com).

For `can/test_private/000_regular.png` the map `anomaly_images/can/test_private/000_regular.tiff`,
float16, and the pixels above the threshold `anomaly_images_thresholded/.../000_regular.png`, 0 or
255, both at the size of the image. The folders of several categories are put together by copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from src.data.images import read_sample
from src.data.samples import UNKNOWN, Sample
from src.detector import Detector
from src.files import atomic
from src.reporting.figures import save_png

_LARGEST = np.finfo(np.float16).max


def write_submission(detector: Detector, samples: Sequence[Sample], folder: Path) -> None:
    """Write maps (raw units) and decisions (the deployed threshold) of samples without a label."""
    for sample in (one for one in samples if one.label == UNKNOWN):
        image = read_sample(sample)
        size, name = (image.height, image.width), Path(*sample.image_path.parts[-3:])
        (found,) = detector.detect([image])
        full = detector.to_original(found.anomaly_map, size).clip(-_LARGEST, _LARGEST)
        target = (folder / "anomaly_images" / name).with_suffix(".tiff")
        with atomic(target) as partial:
            tifffile.imwrite(partial, full.astype(np.float16))
        decided = np.uint8(255) * (detector.to_original(found.mask, size) > 0.5)
        save_png(decided, (folder / "anomaly_images_thresholded" / name).with_suffix(".png"))
