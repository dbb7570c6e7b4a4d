"""From uploaded bytes to an answer: score, decision, pictures, explanation."""

from __future__ import annotations

import base64
import io
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from src.data.build import build_datamodule
from src.data.samples import Sample
from src.deployment.pictures import run_scale
from src.detector import Detection, Detector
from src.errors import DataError
from src.reporting.explaining import explain
from src.reporting.figures import crop, overlay
from src.reporting.records import Box, Picture
from src.saved_run import SavedRun

_CROP_SIDE, _CROP_CONTEXT = 160, 4.0  # pixels of an explanation; side in units of the patch


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
        self.detector = detector
        self.scale = run_scale(SavedRun(detector.directory))
        self.sources = _sources(detector)
        self._one_at_a_time = threading.Lock()

    def answer(self, uploads: Sequence[tuple[str, bytes]], *, pictures: bool) -> list[Answer]:
        """Answers in the order of the uploads (name, content); a bad image spoils only itself."""
        answers = [Answer(name=name) for name, _ in uploads]
        readable: list[tuple[Answer, Image.Image]] = []
        for answer, (_, content) in zip(answers, uploads, strict=True):
            try:
                image = decode(content, self.detector)
                self.detector.transform(image)  # refuses what has no fixed input size
                readable.append((answer, image))
            except DataError as error:
                answer.error = f"{error.found}. {error.do}"
        if readable:
            with self._one_at_a_time:
                found = self.detector.detect([image for _, image in readable])
            for (answer, image), detection in zip(readable, found, strict=True):
                self._fill(answer, image, detection, pictures=pictures)
        return answers

    def _fill(
        self, answer: Answer, image: Image.Image, found: Detection, *, pictures: bool
    ) -> None:
        answer.score, answer.alarm = found.score, found.alarm
        answer.threshold = self.detector.threshold.image
        answer.width, answer.height = image.width, image.height
        if not pictures:
            return
        display = self.detector.transform.display(image)
        picture = Picture(display, found.anomaly_map, segmentation=found.mask)
        answer.picture = data_uri(display)
        answer.overlay = data_uri(overlay(picture, self.scale))
        with self._one_at_a_time:
            match = explain(self.detector, image, self.sources)
        if match is not None:
            answer.explanation = Explanation(
                distance=match.distance,
                source=match.source,
                test_patch=_patch(display, match.box),
                normal_patch=_patch(match.source_display, match.source_box),
            )


def _patch(display: np.ndarray, box: Box) -> str:
    return data_uri(np.asarray(crop(display, box, _CROP_CONTEXT, _CROP_SIDE)))


def decode(content: bytes, detector: Detector) -> Image.Image:
    """An uploaded image in RGB.

    It passes through a file with a name of ours, so that uploads meet exactly the same checks as
    files on disk; the client's name never becomes a path.
    """
    with tempfile.TemporaryDirectory(prefix="upload-") as folder:
        path = Path(folder) / "upload"
        path.write_bytes(content)
        return detector.read(path)


def data_uri(pixels: np.ndarray) -> str:
    """RGB uint8 (H, W, 3) as a WebP data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=86, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _sources(detector: Detector) -> list[Sample]:
    """The samples the run was fitted on; none on a machine that does not have them."""
    data = build_datamodule(detector.config)
    try:
        data.setup()
    except DataError:
        return []
    return data.samples
