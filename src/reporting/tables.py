"""Result tables as Markdown, LaTeX (needs booktabs) and one sortable HTML page.

Cells carry the text a person reads and the value a machine sorts; all text is escaped.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

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


class Cell(NamedTuple):
    """What a person reads, and what sorting uses (None: the text itself)."""

    text: str
    value: float | str | None = None


class Column(NamedTuple):
    """A heading; numbers are set right-aligned."""

    name: str
    numeric: bool = True
    in_latex: bool = True  # False: too much for a page of paper


class Line(NamedTuple):
    """One row; `kind` is PLAIN, TOTAL (a mean of others) or FAILS (left its tolerance)."""

    cells: tuple[Cell, ...]
    kind: str = PLAIN


class Table(NamedTuple):
    """A titled table; every line has one cell a column."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()  # source, protocol, caveats


def percent(value: float, *, sign: bool = False) -> Cell:
    """A fraction in percent; NaN is a dash that sorts last. The value stays a fraction."""
    return Cell("-" if math.isnan(value) else f"{100 * value:{'+' if sign else ''}.2f}", value)


def interval(low: float, high: float) -> Cell:
    """Two fractions in percent; sorted by the lower one."""
    known = not math.isnan(low + high)
    return Cell(
        f"{100 * low:.2f} .. {100 * high:.2f}" if known else "-", low if known else math.nan
    )


def as_markdown(table: Table) -> str:
    """A GitHub table under its title and notes; failing lines are bold."""
    rule = "|".join("---:" if column.numeric else "---" for column in table.columns)
    head = " | ".join(column.name.translate(_MARKDOWN) for column in table.columns)
    lines = [f"## {table.title.translate(_MARKDOWN)}", ""]
    for note in table.notes:
        lines += [note.translate(_MARKDOWN), ""]
    lines += [f"| {head} |", f"|{rule}|"]
    for line in table.lines:
        mark = "**" if line.kind == FAILS else ""
        cells = (cell.text.translate(_MARKDOWN) for cell in line.cells)
        lines.append("| " + " | ".join(f"{mark}{c}{mark}" if c else "" for c in cells) + " |")
    return "\n".join([*lines, ""])


def as_latex(table: Table) -> str:
    """A booktabs table; a rule separates the means, failing lines are bold."""
    keep = [k for k, column in enumerate(table.columns) if column.in_latex]
    spec = "".join("r" if table.columns[k].numeric else "l" for k in keep)
    sentences = (s if s.endswith((".", "!", "?")) else f"{s}." for s in (table.title, *table.notes))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(' '.join(sentences))}}}"]
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
