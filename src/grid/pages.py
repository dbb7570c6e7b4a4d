"""The tables of a paper as Markdown, CSV, LaTeX and one HTML page with sortable columns."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.grid.display import duration
from src.grid.judging import UNJUDGED, Row, verdict_line
from src.grid.papers import GROUPS, MEAN, Paper
from src.grid.planning import Plan
from src.saved_run import write_text

HEADER = (
    "category", "paper", "ours", "difference", "95 % interval", "std over seeds", "tolerated",
    "verdict", "seeds", "protocol", "config", "time",
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One table: a metric of a variant against one source."""

    title: str
    source: str  # "" without published numbers
    note: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Page:
    """Everything about one paper."""

    title: str
    source: str
    verdict: str
    partial: bool
    sections: tuple[Section, ...]


def paper_page(paper: Paper, plan: Plan, rows: Sequence[Row]) -> Page:
    """The page of `paper` from the judged rows of a whole reproduction."""
    own = [row for row in rows if row.table == paper.name]
    cells = [cell for cell in plan.cells if cell.paper.name == paper.name]
    unfinished = sum(not job.is_finished() for cell in cells for job in cell.jobs)
    absent = sorted({category for cell in cells for category in cell.absent})
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    sources = {(row.variant, row.metric): "" for row in own}
    for row in own:
        if row.source:
            sources[row.variant, row.metric] = row.source
    for row in own:
        source = row.source or sources[row.variant, row.metric]
        grouped.setdefault((row.variant, row.metric, source), []).append(row)
    titles = {variant.name: variant.title for variant in paper.variants}
    sections = [
        Section(
            title=f"{titles[variant]}: {metric.removeprefix('test/')}",
            source=source,
            note=next((row.note for row in members if row.note), ""),
            rows=tuple(members),
        )
        for (variant, metric, source), members in grouped.items()
    ]
    return Page(
        title=paper.title,
        source=paper.source,
        verdict=verdict_line(own, unfinished, absent),
        partial=bool(unfinished or absent),
        sections=tuple(sections),
    )


def write_page(page: Page, folder: Path, name: str) -> list[Path]:
    """Write `folder`/`name`.{md,csv,tex,html}; their paths."""
    writers: dict[str, Callable[[Page], str]] = {
        "md": as_markdown,
        "csv": as_csv,
        "tex": as_latex,
        "html": as_html,
    }
    paths = []
    for ending, writer in writers.items():
        path = folder / f"{name}.{ending}"
        write_text(path, writer(page))
        paths.append(path)
    return paths


def as_markdown(page: Page) -> str:
    """GitHub tables, one per section, under the verdict."""
    lines = [f"# {page.title}", "", f"Source: {page.source}", "", f"**{page.verdict}**", ""]
    for section in page.sections:
        lines += [f"## {section.title}", "", *_captions(section)]
        lines += ["| " + " | ".join(HEADER) + " |", "|---|" + "---:|" * (len(HEADER) - 1)]
        for row in section.rows:
            cells = [_strong(cell) if row.fails else cell for cell in _cells(row)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def as_csv(page: Page) -> str:
    """One line per row with full precision; fractions of 1."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["table", "variant", "category", "metric", "source", "paper", "ours", "difference", "low",
         "high", "std", "seeds", "tolerated_low", "tolerated_high", "verdict", "protocol",
         "configs", "seconds", "categories_present", "categories_all", "note"]
    )  # fmt: skip
    for row in (row for section in page.sections for row in section.rows):
        numbers = (row.paper, row.ours, row.difference, *row.interval, row.std)
        writer.writerow(
            [row.table, row.variant, row.category, row.metric, row.source,
             *map(_exact, numbers), row.seeds, *map(_exact, row.tolerance), row.verdict,
             row.protocol, " ".join(row.hashes), _exact(row.seconds), *row.of, row.note]
        )  # fmt: skip
    return stream.getvalue()


def as_latex(page: Page) -> str:
    r"""Tables for \usepackage{booktabs}; numbers in percent."""
    lines = [f"% {page.title}. {page.verdict}"]
    for section in page.sections:
        caption = ". ".join([section.title, *filter(None, [section.source, section.note])])
        lines += [
            r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}.}}",
            r"\begin{tabular}{lrrrrl}", r"\toprule",
            r"category & paper & ours & difference & 95\,\% interval & verdict \\", r"\midrule",
        ]  # fmt: skip
        previous = ""
        for row in section.rows:
            if _is_mean(row.category) and not _is_mean(previous):
                lines.append(r"\midrule")
            previous = row.category
            name, paper, ours, difference, interval, *_ = _cells(row)
            cells = [_tex(cell) for cell in (name, paper, ours, difference, interval, row.verdict)]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def as_html(page: Page) -> str:
    """One self-contained page; a click on a column sorts its table."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{html.escape(page.title)}</title>",
        f"<style>{_STYLE}</style><h1>{html.escape(page.title)}</h1>",
        f"<p>{html.escape(page.source)}</p>",
        f"<p class='{'partial' if page.partial else 'whole'}'>{html.escape(page.verdict)}</p>",
    ]
    for section in page.sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [f"<p>{html.escape(line)}</p>" for line in _captions(section) if line]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
        body = "".join(_html_row(row) for row in section.rows)
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    return "\n".join([*parts, f"<script>{_SCRIPT}</script></html>", ""])


def _captions(section: Section) -> list[str]:
    lines = [f"Paper: {section.source}." if section.source else "No published number."]
    if section.note:
        lines.append(f"Note: {section.note}.")
    return [*lines, ""]


def _cells(row: Row) -> list[str]:
    """The texts of a row in the order of HEADER, numbers in percent."""
    name = row.category if row.of[0] == row.of[1] else f"{row.category} of {row.of[0]}/{row.of[1]}"
    return [
        name, _percent(row.paper), _percent(row.ours), _signed(row.difference),
        _range(*row.interval), _percent(row.std), "-" if row.paper is None else
        _range(*row.tolerance), row.verdict, str(row.seeds), row.protocol,
        " ".join(row.hashes) or "-", "-" if math.isnan(row.seconds) else duration(row.seconds),
    ]  # fmt: skip


def _html_row(row: Row) -> str:
    keys = [row.category, row.paper, row.ours, row.difference, row.interval[0], row.std,
            row.tolerance[0], row.verdict, row.seeds, row.protocol, " ".join(row.hashes),
            row.seconds]  # fmt: skip
    cells = "".join(
        f"<td data-key='{html.escape(_exact(key), quote=True)}'>{html.escape(text)}</td>"
        for key, text in zip(keys, _cells(row), strict=True)
    )
    kind = "outside" if row.fails else "within" if row.verdict != UNJUDGED else "unjudged"
    total = " total" if _is_mean(row.category) else ""
    return f"<tr class='{kind}{total}'>{cells}</tr>"


def _is_mean(category: str) -> bool:
    return category == MEAN or category in GROUPS


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:+.2f}"


def _range(low: float, high: float) -> str:
    return "-" if math.isnan(low) or math.isnan(high) else f"{100 * low:.2f} .. {100 * high:.2f}"


def _exact(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _strong(cell: str) -> str:
    return f"**{cell}**"


def _tex(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 2rem}th,td{padding:.2rem .7rem;text-align:right}
th:first-child,td:first-child{text-align:left}th{cursor:pointer;border-bottom:2px solid #444}
td{border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}.outside{background:#ffe1dc}
.total{font-weight:600}.partial{background:#fff3c4;padding:.5rem}.whole{background:#eef5ee;padding:.5rem}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}td{border-color:#333}
.outside{background:#5a231b}.partial{background:#4f4310}.whole{background:#1d3320}}
"""
_SCRIPT = """
for(const th of document.querySelectorAll('th'))th.onclick=()=>{
const body=th.closest('table').tBodies[0],i=th.cellIndex,up=th.dataset.up!=='1';
th.dataset.up=up?'1':'0';
const key=r=>{const k=r.cells[i].dataset.key;return k!==''&&!isNaN(k)?Number(k):k};
[...body.rows].sort((a,b)=>{const x=key(a),y=key(b);
const c=typeof x===typeof y?(x>y)-(x<y):typeof x==='number'?-1:1;return up?c:-c})
.forEach(r=>body.append(r))}
"""
