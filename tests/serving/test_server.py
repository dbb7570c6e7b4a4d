from __future__ import annotations

import base64
import io

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from src.commands.serve import build_application
from src.detector import Detector


@pytest.fixture(scope="module")
def client(finished_run):
    return TestClient(build_application(Detector.load(finished_run, "cpu"), 4, 0.5))


def upload(*paths):
    return [("files", (path.name, path.read_bytes(), "image/png")) for path in paths]


def test_served_scores_are_those_of_the_detector(client, finished_run, drawn_images):
    answers = client.post("/api/score", files=upload(*drawn_images[:3])).json()
    detector = Detector.load(finished_run, "cpu")
    for path, answer in zip(drawn_images, answers, strict=False):
        with Image.open(path) as image:
            found = detector.detect([image.convert("RGB")])[0]
        assert answer["score"] == pytest.approx(found.score, rel=1e-5)
        assert answer["alarm"] == found.alarm
        assert (answer["height"], answer["width"]) == (64, 64)


def test_pictures_and_an_explanation_come_on_request(client, drawn_images):
    plain, rich = (
        client.post(f"/api/score{query}", files=upload(drawn_images[0])).json()[0]
        for query in ("", "?pictures=true")
    )
    assert plain["overlay"] is None
    assert plain["explanation"] is None
    kind, content = rich["overlay"].split(",", 1)
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (64, 64)
    assert rich["explanation"]["source"].endswith(".png")


def test_a_bad_file_spoils_only_its_own_answer(client, drawn_images):
    files = [*upload(drawn_images[0]), ("files", ("x.png", b"no image", "image/png"))]
    good, bad = client.post("/api/score", files=files).json()
    assert good["score"] is not None
    assert bad["score"] is None
    assert "no known image format" in bad["error"]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..\\x.png", "a" * 300, "<b>&.png"]
)
def test_a_client_name_is_never_opened_as_a_path(client, drawn_images, name):
    content = drawn_images[0].read_bytes()
    answer = client.post("/api/score", files=[("files", (name, content, "image/png"))]).json()[0]
    assert answer["score"] is not None
    evil = client.post("/api/score", files=[("files", (name, b"", "image/png"))]).json()[0]
    assert evil["score"] is None
    assert "root:" not in evil["error"]


def test_too_many_and_too_large_uploads_are_refused(client, drawn_images):
    assert client.post("/api/score", files=upload(*drawn_images[:5])).status_code == 413
    large = [("files", ("big.png", b"x" * 600_000, "image/png"))]
    assert client.post("/api/score", files=large).status_code == 413
    huge = [("files", (f"{i}.png", b"x" * 600_000, "image/png")) for i in range(4)]
    assert client.post("/api/score", files=huge).status_code == 413


def test_missing_files_are_named_by_the_schema(client):
    answer = client.post("/api/score", files={"other": ("a", b"b")})
    assert answer.status_code == 422
    assert "files" in answer.text


def test_openapi_describes_the_endpoint_and_the_page_needs_nothing_foreign(client):
    schema = client.get("/openapi.json").json()
    assert {"/api/score", "/api/detector"} <= set(schema["paths"])
    assert "score" in schema["components"]["schemas"]["Answer"]["properties"]
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/", "/page.css", "/page.js"):
        assert "http://" not in client.get(path).text
        assert "https://" not in client.get(path).text
