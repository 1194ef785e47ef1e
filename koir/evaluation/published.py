"""Scores that others published, or that we expect, against those just measured: the same cells, within a tolerance.

A file holds {"tolerance": T, "cells": [{model, task, metric, value}, ...]}; metric as in results (`ndcg_at_10`), value
from 0 to 1, and a cell may have a tolerance of its own. model: a hub name, which is what `dense:NAME` measures, or a
pipeline's name as results/ has it. What has no cell, or was not measured, is counted and never a failure.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from koir.errors import FlagError

TOLERANCE = 0.002


def read_cells(file: str) -> tuple[list[dict], float]:
    """The cells and the tolerance of a file. Raises FlagError where it is not of that shape."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        cells = content["cells"]
        for cell in cells:
            float(cell["value"]), cell["model"], cell["task"], cell["metric"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"[:200]
        raise FlagError(file, found, "a JSON file of cells: model, task, metric, value") from None
    return cells, float(content.get("tolerance", TOLERANCE))


def compared(cells: Sequence[dict], contents: Sequence[dict], tolerance: float) -> list[dict]:
    """Every cell that was measured: the cell with `measured`, `off` (measured - value) and `ok`."""
    measured = {}
    for content in contents:
        koir = content["koir"]
        (scores,) = next(iter(content["scores"].values()))
        names = {koir["name"]}
        kind, _, path = koir["pipeline"]["first_stage"].partition(":")
        if koir["pipeline"]["reranker"] is None and kind == "dense":
            names.add(path)
        for name in names:
            measured[name, content["task_name"]] = scores
    rows = []
    for cell in cells:
        scores = measured.get((cell["model"], cell["task"]), {})
        if cell["metric"] in scores:
            off = scores[cell["metric"]] - float(cell["value"])
            ok = abs(off) <= float(cell.get("tolerance") or tolerance)
            rows.append(cell | {"measured": scores[cell["metric"]], "off": off, "ok": ok})
    return rows


def lines(rows: Sequence[dict], cells: int) -> list[str]:
    """A line for each compared cell, OK or off by so much, and the count."""
    found = []
    for row in rows:
        verdict = "OK" if row["ok"] else f"off by {row['off']:+.4f}"
        place = f"{row['model']}  {row['task']}  {row['metric']}"
        found.append(f"{place}: published {float(row['value']):.4f}, measured {row['measured']:.4f}  {verdict}")
    good = sum(row["ok"] for row in rows)
    return [*found, f"{good} of {len(rows)} cells OK; {cells - len(rows)} of {cells} cells were not measured here"]
