"""From uploaded bytes to an answer: score, decision, pictures, explanation."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from src.deployment.scoring import Readable, detect_readable, read_fitting
from src.detector import Detection, Detector
from src.errors import DataError
from src.explaining import explain, sources_of
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import crop, overlay
from src.reporting.page_images import webp
from src.reporting.records import Box, Picture
from src.saved_run import SavedRun

_CROP_SIDE, _CROP_CONTEXT = 160, 4.0  # pixels of an explanation; side in units of the patch
_uri = partial(webp, quality=86)


class Explanation(BaseModel):
    """The most anomalous patch and the normal patch it was compared with."""

    distance: float = Field(description="feature distance of the two patches")
    source: str = Field(description="file name of the normal image")
    test_patch: str = Field(description="data URI")
    normal_patch: str = Field(description="data URI")


class Answer(BaseModel):
    """What the detector says of one uploaded image."""

    name: str = Field(description="file name as sent; never used as a path")
    score: float | None = Field(default=None, description="raw units, higher is more anomalous")
    alarm: bool | None = None
    threshold: float | None = Field(default=None, description="alarm when score > threshold")
    width: int | None = Field(default=None, description="pixels of the original image")
    height: int | None = None
    picture: str | None = Field(default=None, description="the image as the model saw it, data URI")
    overlay: str | None = Field(default=None, description="the same with heat, data URI")
    explanation: Explanation | None = None
    error: str | None = Field(default=None, description="why this image could not be scored")


class Answering:
    """A detector that several requests share; one batch is scored at a time."""

    def __init__(self, detector: Detector) -> None:
        run = SavedRun(detector.directory)
        self.detector, self.scale, self.sources = detector, ColourScale.of_run(run), sources_of(run)
        self._one_at_a_time = threading.Lock()

    def answer(self, uploads: Sequence[tuple[str, bytes]], *, pictures: bool) -> list[Answer]:
        """Answers in the order of the uploads (name, content); a bad image spoils only itself."""
        images = [self._read(content) for _, content in uploads]
        with self._one_at_a_time:
            results = detect_readable(self.detector, images)
        answers = []
        for (name, _), result in zip(uploads, results, strict=True):
            if isinstance(result, DataError):
                answers.append(Answer(name=name, error=f"{result.found}. {result.do}"))
            else:
                answers.append(self._answer(name, *result, pictures=pictures))
        return answers

    def _read(self, content: bytes) -> Readable:
        """An uploaded image in RGB.

        It passes through a file with a name of ours, so that uploads meet exactly the same checks
        as files on disk; the client's name never becomes a path.
        """
        with tempfile.TemporaryDirectory(prefix="upload-") as folder:
            path = Path(folder) / "upload"
            path.write_bytes(content)
            return read_fitting(self.detector, path)

    def _answer(self, name: str, image: Image.Image, found: Detection, *, pictures: bool) -> Answer:
        answer = Answer(
            name=name, score=found.score, alarm=found.alarm, width=image.width, height=image.height,
            threshold=self.detector.threshold.image,
        )  # fmt: skip
        if not pictures:
            return answer
        display = self.detector.transform.display(image)
        picture = Picture(display, found.anomaly_map, segmentation=found.mask)
        answer.picture, answer.overlay = _uri(display), _uri(overlay(picture, self.scale))
        with self._one_at_a_time:
            match = explain(self.detector, image, self.sources)
        if match is not None:
            answer.explanation = Explanation(
                distance=match.distance,
                source=match.source,
                test_patch=_patch(display, match.box),
                normal_patch=_patch(match.source_display, match.source_box),
            )
        return answer


def _patch(display: np.ndarray, box: Box) -> str:
    return _uri(np.asarray(crop(display, box, _CROP_CONTEXT, _CROP_SIDE)))
