"""The web application: one page, one endpoint, strict limits, localhost by default."""

import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, HTTPException, Query, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from omegaconf import DictConfig
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor

from src.data.record import place_of
from src.deployment.scoring import Readable, read_fitting
from src.detector import Detection, Detector
from src.errors import DataError
from src.explaining import explain, sources_of
from src.files import shown
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import crop, overlay
from src.reporting.page_images import webp
from src.reporting.records import Picture
from src.reporting.wording import method_title

TEMPLATES = Path(__file__).with_name("templates")
_CROP_SIDE, _CROP_CONTEXT = 160, 4.0  # pixels of an explanation; side in units of the patch
_TOGETHER = 8  # ours: requests of one batch; their images are in memory together
_OVERHEAD = 1 << 16  # bytes of multipart headers allowed beside the files
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
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


class Facts(BaseModel):
    """What is being served."""

    method: str
    data: str
    category: str
    backbone: str | None
    threshold: float
    rule: str
    average_false_alarm_rate: float | None  # over calibrations
    false_alarm_rate_limit: float | None  # what 95 in 100 calibrations keep
    files: int
    file_megabytes: float


def serve(cfg: DictConfig) -> None:
    """Load the run and serve it until interrupted."""
    detector = Detector.load(Path(cfg.run), cfg.device, cfg.category)
    application = build_application(detector, cfg.limits.files, cfg.limits.file_megabytes)
    print(f"http://{cfg.host}:{cfg.port}  (Ctrl-C stops)")
    uvicorn.run(application, host=cfg.host, port=cfg.port, log_level="warning")


def build_application(detector: Detector, max_files: int, max_megabytes: float) -> FastAPI:
    """The application for one detector; so many images per request, of so many megabytes each."""
    answering = Answering(detector)
    max_bytes = int(max_megabytes * 1e6)
    application = FastAPI(
        title="goodparts", summary="Scores images with a fitted detector", docs_url=None,
        redoc_url=None,
    )  # fmt: skip
    _add_limits(application, max_files * max_bytes + _OVERHEAD)

    @application.get("/api/detector")
    def detector_facts() -> Facts:
        """Method, data, threshold and limits."""
        config, threshold = detector.config, detector.threshold
        return Facts(
            method=method_title(str(config.model.name)),
            data=str(config.data.name),
            category=shown(place_of(config.data)[1]),
            backbone=config.backbone.name,
            threshold=threshold.image,
            rule=threshold.rule,
            average_false_alarm_rate=threshold.attained,
            false_alarm_rate_limit=threshold.attained_limit,
            files=max_files,
            file_megabytes=max_megabytes,
        )

    @application.post("/api/score", responses={413: {"description": "too large or too many"}})
    def score(
        files: Annotated[list[UploadFile], File(description="images")],
        pictures: Annotated[bool, Query(description="also send overlays")] = False,
    ) -> list[Answer]:
        """Score images; one answer each, in the order they were sent."""
        if len(files) > max_files:
            raise HTTPException(413, f"{len(files)} images; send at most {max_files} at once")
        uploads = []
        for upload in files:
            content = upload.file.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise HTTPException(413, f"an image is larger than {max_megabytes:g} MB")
            uploads.append((upload.filename or "image", content))
        return answering.answer(uploads, pictures=pictures)

    application.mount("/", StaticFiles(directory=TEMPLATES, html=True))  # behind the above
    return application


def _add_limits(application: FastAPI, max_body: int) -> None:
    """Refuse bodies that announce too much, and send headers that allow nothing foreign."""

    @application.middleware("http")
    async def limit(request: Request, call_next: Any) -> Response:
        length = request.headers.get("content-length")
        if request.method == "POST":
            if length is None or not length.isdigit():
                return PlainTextResponse("a Content-Length is required", 411)
            if int(length) > max_body:
                return PlainTextResponse(f"at most {max_body} bytes per request", 413)
        answer: Response = await call_next(request)
        answer.headers["Content-Security-Policy"] = _POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        return answer


class Answering:
    """A detector that several requests share; those that come while it works are its next batch."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.scale = detector, ColourScale.of_run(detector.run)
        self.sources = sources_of(detector.run)
        self._one_at_a_time = threading.Lock()
        self._waiting: deque[tuple[list[Tensor], list[Detection]]] = deque()

    def answer(self, uploads: Sequence[tuple[str, bytes]], *, pictures: bool) -> list[Answer]:
        """Answers in the order of the uploads (name, content); a bad image spoils only itself."""
        images: list[Readable] = []
        with tempfile.TemporaryDirectory(prefix="upload-") as folder:
            # Through a file with a name of ours, so that uploads meet exactly the same checks as
            # files on disk; the client's name never becomes a path.
            path = Path(folder) / "upload"
            for _, content in uploads:
                path.write_bytes(content)
                images.append(read_fitting(self.detector, path))
        good = [image for image in images if not isinstance(image, DataError)]
        inputs = [self.detector.transform(image) for image in good]
        found = iter(self._score(inputs) if good else [])
        return [
            Answer(name=name, error=f"{image.found}. {image.do}")
            if isinstance(image, DataError)
            else self._answer(name, image, next(found), pictures=pictures)
            for (name, _), image in zip(uploads, images, strict=True)
        ]

    def _score(self, inputs: list[Tensor]) -> list[Detection]:
        """What the detector says of the images (3, H, W) of one request."""
        found: list[Detection] = []
        self._waiting.append((inputs, found))
        with self._one_at_a_time:
            while self._waiting and len(found) < len(inputs):
                count = min(_TOGETHER, len(self._waiting))
                batch = [self._waiting.popleft() for _ in range(count)]
                said = iter(self.detector.score([one for images, _ in batch for one in images]))
                for images, answers in batch:
                    answers += islice(said, len(images))
        if len(found) < len(inputs):
            raise RuntimeError("the batch that this request was part of could not be scored")
        return found

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
                test_patch=_uri(crop(display, match.box, _CROP_CONTEXT, _CROP_SIDE)),
                normal_patch=_uri(
                    crop(match.source_display, match.source_box, _CROP_CONTEXT, _CROP_SIDE)
                ),
            )
        return answer
