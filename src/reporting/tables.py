r"""Result tables as Markdown, CSV, LaTeX and one sortable HTML page.

A table is plain data: cells carry the text a person reads and the value a machine sorts. The
writers are pure functions and escape everything, so that a category called `a|b_50%` breaks
nothing. LaTeX needs \usepackage{booktabs}. The HTML page needs no network, works without a mouse
and is readable without JavaScript.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from src.reporting.pages import render_page

PLAIN, TOTAL, FAILS = "plain", "total", "fails"  # kinds of lines: a mean, a number out of bounds

_TEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "\N{MINUS SIGN}": "$-$", "±": r"$\pm$", "\N{MULTIPLICATION SIGN}": r"$\times$",
    "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$", "\N{GREEK SMALL LETTER SIGMA}": r"$\sigma$",
    "\N{NO-BREAK SPACE}": "~", "\n": " ", "\r": " ",
} | {character: f"\\{character}" for character in "&%$#_{}"})  # fmt: skip
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]|~"} | {
    "<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " ",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """What a person reads, and what sorting and CSV use (None: the text itself)."""

    text: str
    value: float | str | None = None

    @property
    def key(self) -> float | str:
        """The value, or the text where there is none."""
        return self.text if self.value is None else self.value


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; numbers are set right-aligned."""

    name: str
    numeric: bool = True
    in_latex: bool = True  # False: too much for a page of paper


@dataclass(frozen=True, slots=True)
class Line:
    """One row; `kind` is PLAIN, TOTAL (a mean of others) or FAILS (left its tolerance)."""

    cells: tuple[Cell, ...]
    kind: str = PLAIN


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table; every line has one cell a column."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()  # source, protocol, caveats

    def __post_init__(self) -> None:
        wrong = [len(line.cells) for line in self.lines if len(line.cells) != len(self.columns)]
        if wrong:
            raise ValueError(f"{self.title}: {wrong[0]} cells for {len(self.columns)} columns")


def number(value: float | None, digits: int = 4, *, sign: bool = False) -> Cell:
    """A number with fixed digits; None and NaN are a dash that sorts last."""
    if value is None or math.isnan(value):
        return Cell("-", math.nan)
    return Cell(f"{value:{'+' if sign else ''}.{digits}f}", float(value))


def percent(value: float | None, digits: int = 2, *, sign: bool = False) -> Cell:
    """A fraction in percent; None and NaN are a dash. The value stays a fraction."""
    shown = number(None if value is None else 100.0 * value, digits, sign=sign)
    return Cell(shown.text, math.nan if value is None else float(value))


def interval(low: float, high: float, digits: int = 2) -> Cell:
    """Two fractions in percent; sorted by the lower one."""
    if math.isnan(low) or math.isnan(high):
        return Cell("-", math.nan)
    return Cell(f"{100 * low:.{digits}f} .. {100 * high:.{digits}f}", float(low))


def as_markdown(table: Table) -> str:
    """A GitHub table under its title and notes; failing lines are bold."""
    head = " | ".join(_markdown(column.name) for column in table.columns)
    rule = "|".join("---:" if column.numeric else "---" for column in table.columns)
    lines = [f"## {_markdown(table.title)}", ""]
    for note in table.notes:
        lines += [_markdown(note), ""]
    lines += [f"| {head} |", f"|{rule}|"]
    for line in table.lines:
        mark = "**" if line.kind == FAILS else ""
        cells = [_markdown(cell.text) for cell in line.cells]
        lines.append("| " + " | ".join(f"{mark}{c}{mark}" if c else "" for c in cells) + " |")
    return "\n".join([*lines, ""])


def as_csv(table: Table) -> str:
    """Values with full precision, NaN as nothing.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([_csv(column.name) for column in table.columns])
    for line in table.lines:
        writer.writerow([_csv(cell.key) for cell in line.cells])
    return stream.getvalue()


def as_latex(table: Table, label: str = "") -> str:
    """A booktabs table; a rule separates the means, failing lines are bold."""
    keep = [k for k, column in enumerate(table.columns) if column.in_latex]
    spec = "".join("r" if table.columns[k].numeric else "l" for k in keep)
    notes = " ".join(_sentence(note) for note in table.notes)
    caption = f"{_sentence(latex(table.title))} {latex(notes)}".strip()
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    lines += [rf"\label{{{label}}}"] if label else []
    lines += [rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    lines += [" & ".join(latex(table.columns[k].name) for k in keep) + r" \\", r"\midrule"]
    previous = PLAIN
    for line in table.lines:
        if line.kind == TOTAL and previous != TOTAL and line is not table.lines[0]:
            lines.append(r"\midrule")
        previous = line.kind
        texts = [latex(line.cells[k].text) for k in keep]
        if line.kind == FAILS:
            texts = [rf"\textbf{{{text}}}" if text else "" for text in texts]
        lines.append(" & ".join(texts) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def as_html(title: str, tables: Sequence[Table], notes: Sequence[str] = ()) -> str:
    """One self-contained page of all tables; a click or Enter on a heading sorts."""
    return render_page(
        "tables.html.j2", "tables.css", "tables.js", title=title, tables=tables, notes=notes
    )


def latex(text: str) -> str:
    """Text with every character that LaTeX takes for a command escaped."""
    return text.translate(_TEX)


def _markdown(text: str) -> str:
    return text.translate(_MARKDOWN)


def _csv(value: float | str) -> str:
    if isinstance(value, str):
        return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    return "" if math.isnan(value) else repr(value)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
