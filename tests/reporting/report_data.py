"""A whole report in miniature, with names that would break a careless page."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.stats import binomtest

from src.reporting.records import ProtocolFacts, ReportData
from src.result import Calibration, Curve, DefectRecall, Threshold
from tests.reporting.pictures import SCALE, make_picture, make_results

EVIL = """<script>alert("1")</script>'"&amp;{{ 7 * 7 }}</title>\N{SNOWMAN}.png"""


def wilson(found, total):
    interval = binomtest(found, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def make_report(count=12, *, match=False, extra=False, evil=False, **changes):
    rows = make_results(count)
    shown = [make_picture(defect=bool(row.label), seed=k) for k, row in enumerate(rows)]
    if match or extra:
        for k in (3, 5):
            picture = make_picture(seed=k, match=match)
            maps = {"-log10 NFA": np.full((12, 16), 3.0, np.float32)} if extra else {}
            shown[k] = replace(picture, extra=maps)
    if evil:
        rows[4] = rows[4]._replace(path=EVIL, defect=EVIL)
    recalls = []
    for name in ("crack", "stain"):
        mine = [row for row in rows if row.defect == name]
        found = sum(row.decision for row in mine)
        recalls.append(DefectRecall(name, found, len(mine), *wilson(found, len(mine))))
    x = np.linspace(0, 1, 30)
    values = {
        "title": EVIL if evil else "PatchCore on bottle",
        "subtitle": "seed 0",
        "metrics": {
            "test/image_auroc": 0.9123, "test/image_auroc_ci_low": 0.88,
            "test/image_auroc_ci_high": 0.95, "test/aupro": math.nan, "fit/seconds": 12.0,
        },
        "threshold": Threshold(1.0, 1.0, "conformal", 0.05, 0.04, 24),
        "protocol": ProtocolFacts("honest", 24, Calibration.leave_one_out),
        "images": rows,
        "pictures": {k: partial(copy, picture) for k, picture in enumerate(shown)},
        "scale": SCALE,
        "recalls": recalls,
        "curves": [Curve("roc", x, x**0.2, 0.83), Curve("pr", x, 1 - x, 0.5),
                   Curve("pro", x, x**0.3, 0.7, 0.3)],
        "config_yaml": f"seed: 0\nname: {EVIL}\n" if evil else "seed: 0\n",
        "manifest": {"code": {"commit": EVIL if evil else "abc"}, "gpus": [], "n": 3},
        "notes": (EVIL,) if evil else (),
        "command": EVIL if evil else "python -m src.run seed=0",
    }  # fmt: skip
    return ReportData(**(values | changes))
