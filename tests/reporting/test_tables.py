from __future__ import annotations

import math
import re

from src.reporting import tables
from src.reporting.tables import FAILS, TOTAL, Cell, Column, Line, Table

NASTY = 'a|b_50% & {x} \\ ~ ^ <script>"#$</script>\n*z*'


def make_table(name=NASTY):
    columns = (Column("category", numeric=False), Column("paper"), Column("ours"),
               Column("hash", numeric=False, in_latex=False))  # fmt: skip
    lines = (
        Line((Cell(name), tables.percent(0.9916), tables.percent(0.98), Cell("ab12"))),
        Line((Cell("grid"), tables.percent(math.nan), tables.percent(math.nan), Cell("")), FAILS),
        Line((Cell("mean"), tables.percent(0.9), tables.percent(1.0), Cell("-")), TOTAL),
    )
    return Table("PatchCore: 100 % of it", columns, lines, (NASTY, "Protocol honest."))


def test_latex_text_reads_back_as_the_original_and_holds_no_bare_special():
    back = {value: chr(key) for key, value in tables._TEX.items() if chr(key) not in "\r\n"}
    escaped = tables.latex(NASTY.replace("\n", " "))
    pattern = "|".join(re.escape(code) for code in sorted(back, key=len, reverse=True))
    assert re.sub(pattern, lambda m: back[m.group()], escaped) == NASTY.replace("\n", " ")
    bare = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]", "", escaped)
    assert not set(bare) & set('\\&%$#_{}~^<>|"')


def test_a_latex_table_has_as_many_columns_in_every_line_and_a_rule_before_the_means():
    text = tables.as_latex(make_table())
    assert r"\begin{tabular}{lrr}" in text
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", row)) == 2 for row in rows)
    assert body.splitlines()[-2] == r"\midrule" and body.splitlines()[-1].startswith("mean")
    assert r"\textbf{grid}" in text and "ab12" not in text
    assert text.count("{") == text.count("}")


def test_markdown_cells_cannot_break_out_of_their_column():
    text = tables.as_markdown(make_table())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert rows[1] == "|---|---:|---:|---|"
    assert "<script>" not in text and "**grid**" in text


def test_numbers_are_rounded_in_sight_and_exact_underneath():
    assert tables.percent(0.98765, sign=True) == Cell("+98.77", 0.98765)
    assert tables.interval(0.9, 0.95).text == "90.00 .. 95.00"
    assert tables.interval(math.nan, 1.0).text == "-"


def test_the_page_escapes_everything_and_reaches_for_nothing():
    text = tables.as_html(NASTY, [make_table(), make_table("x")], [NASTY])
    assert "<script>&#34;" not in text and text.count("<script>") == 1
    assert "default-src &#39;none&#39;" in text
    assert not re.search(r'(?:src|href)="(?!data:,)', text)
    assert text.count("<table>") == 2
