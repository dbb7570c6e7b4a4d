"""Writes the table of docs/data_sets.md from conf/data: `make docs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.composing import CONF

PAGE = Path(__file__).with_suffix(".md")
_BEGIN, _END = "<!-- made by `make docs` from conf/data -->\n", "<!-- end of the table -->\n"
_HEAD = ["`data=`", "data set", "categories", "images", "licence", "how it is fetched"]


def page(text: str) -> str:
    """The page with the table of today between its marks."""
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{rest.split(_END)[1]}"


def table() -> str:
    """One row for each file of conf/data that has a licence, by name."""
    files = sorted((CONF / "data").glob("*.yaml"))
    nodes = {path.stem: OmegaConf.load(path) for path in files}
    rows = [_HEAD, ["---"] * len(_HEAD)]
    rows += [_row(name, data) for name, data in nodes.items() if "about" in data]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(name: str, data: Any) -> list[str]:
    about, archives = data.about, list(data.get("archives", {}).values())
    checked = all(
        any(mirror.checksum or mirror.url.startswith("zenodo:") for mirror in archive.mirrors)
        for archive in archives
    )
    fetched = f"by itself, checked by its {'checksum' if checked else 'checksum or counts'}"
    count = len(data.categories)
    return [
        f"`{name}`", f"[{about.name}]({about.page}), {about.paper}",
        str(count) if count > 1 else "-", about.images, about.licence,
        fetched if archives else "by hand, from its page",
    ]  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
