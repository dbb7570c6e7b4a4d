"""The web application: one page, one endpoint, strict limits, localhost by default."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, HTTPException, Query, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, PlainTextResponse
from omegaconf import DictConfig
from pydantic import BaseModel

from src.detector import Detector
from src.files import shown
from src.reporting.wording import method_title
from src.serving.answers import Answer, Answering

_OVERHEAD = 1 << 16  # bytes of multipart headers allowed beside the files
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


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
    application = build_application(
        Detector.load(Path(cfg.run), cfg.device), cfg.limits.files, cfg.limits.file_megabytes
    )
    print(f"http://{cfg.host}:{cfg.port}  (Ctrl-C stops)")
    uvicorn.run(application, host=cfg.host, port=cfg.port, log_level="warning")


def build_application(detector: Detector, max_files: int, max_megabytes: float) -> FastAPI:
    """The application for one detector.

    Args:
        detector: loaded run.
        max_files: images per request.
        max_megabytes: size of one image.
    """
    answering = Answering(detector)
    max_bytes = int(max_megabytes * 1e6)
    application = FastAPI(
        title="goodparts", summary="Scores images with a fitted detector", docs_url=None,
        redoc_url=None,
    )  # fmt: skip
    _add_page(application)
    _add_limits(application, max_files * max_bytes + _OVERHEAD)

    @application.get("/api/detector")
    def detector_facts() -> Facts:
        """Method, data, threshold and limits."""
        return _facts(detector, max_files, max_megabytes)

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

    return application


def _facts(detector: Detector, max_files: int, max_megabytes: float) -> Facts:
    config, threshold = detector.config, detector.threshold
    return Facts(
        method=method_title(str(config.model.name)),
        data=str(config.data.name),
        category=shown(str(config.data.category or Path(str(config.data.root)).name)),
        backbone=config.backbone.name,
        threshold=threshold.image,
        rule=threshold.rule,
        average_false_alarm_rate=threshold.attained,
        false_alarm_rate_limit=threshold.attained_limit,
        files=max_files,
        file_megabytes=max_megabytes,
    )


def _add_page(application: FastAPI) -> None:
    folder = files("src.serving") / "templates"

    def send(name: str, kind: str) -> Callable[[], Response]:
        text = (folder / name).read_text(encoding="utf-8")
        return lambda: Response(text, media_type=kind)

    page = (folder / "page.html").read_text(encoding="utf-8")
    application.get("/", response_class=HTMLResponse, include_in_schema=False)(
        lambda: HTMLResponse(page)
    )
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        application.get(f"/{name}", include_in_schema=False)(send(name, kind))


def _add_limits(application: FastAPI, max_body: int) -> None:
    """Refuse bodies that announce too much, and send headers that allow nothing foreign."""

    @application.middleware("http")
    async def limit(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        length = request.headers.get("content-length")
        if request.method == "POST":
            if length is None or not length.isdigit():
                return PlainTextResponse("a Content-Length is required", 411)
            if int(length) > max_body:
                return PlainTextResponse(f"at most {max_body} bytes per request", 413)
        answer: Any = await call_next(request)
        answer.headers["Content-Security-Policy"] = _POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        return answer
