"""Published or expected scores against those just measured, cell by cell, within a tolerance.

Reads results/published/*.json (models -> scores -> task -> metric) and results/expected/*.json:
{"first_stage": [...], "tasks": [...], "tolerance": T, "cells": [{model, task, split, metric, value}, ...]}, values from
0 to 1; a cell may have a tolerance of its own. A published model is a hub name, which is what `dense:NAME` measures;
elsewhere model is a pipeline's name as results/ has it. Cells of other splits, and cells that were not measured, are
counted and never a failure, unless the file itself says what measures them (`asked`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from koir.errors import FlagError
from koir.evaluation.published import METRIC

TOLERANCE = 0.001


def read_cells(file: str) -> list[dict]:
    """The cells of a file, each with its tolerance. Raises FlagError where it is not of either shape."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        cells = content["cells"] if "cells" in content else _published(content)
        for cell in cells:
            float(cell["value"]), cell["model"], cell["task"], cell["split"], cell["metric"]
            cell["tolerance"] = float(cell.get("tolerance", content.get("tolerance", TOLERANCE)))
        return cells
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"[:200]
        raise FlagError(file, found, "a file of results/published/ or results/expected/") from None


def asked(file: str) -> tuple[list[str], list[str]] | None:
    """The first stages and tasks that a file of expected scores is measured by; None for a table that names none.

    Raises FlagError for a file that cannot be read, or that says it otherwise.
    """
    read_cells(file)
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    if "first_stage" not in content:
        return None
    found = content["first_stage"], content.get("tasks", [])
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in found):
        raise FlagError(file, f"first_stage and tasks {json.dumps(found)[:100]}", "two lists of names")
    return found


def _published(content: dict) -> list[dict]:
    cells = []
    for model in content["models"]:
        for task, block in model["scores"].items():
            place = {"model": model["name"], "task": task, "split": content["tasks"][task]["split"]}
            for metric, said in block.items():
                value = said.get("value") if isinstance(said, dict) else said
                if METRIC.fullmatch(metric) and value is not None:
                    cells.append(place | {"metric": metric, "value": value})
    return cells


def compared(cells: Sequence[dict], contents: Sequence[dict], tolerance: float | None = None) -> list[dict]:
    """Every cell that was measured: the cell with `measured`, `off` (measured - value) and `ok`.

    tolerance: in place of the cells' own.
    """
    measured = {}
    for content in contents:
        koir = content["koir"]
        ((split, (scores,)),) = content["scores"].items()
        kind, _, path = koir["pipeline"]["first_stage"].partition(":")
        names = {koir["name"]} | ({path} if kind == "dense" and koir["pipeline"]["reranker"] is None else set())
        measured |= {(name, content["task_name"], split): scores for name in names}
    rows = []
    for cell in cells:
        scores = measured.get((cell["model"], cell["task"], cell["split"]), {})
        if cell["metric"] in scores:
            off, allowed = scores[cell["metric"]] - float(cell["value"]), cell["tolerance"]
            within = abs(off) <= (allowed if tolerance is None else tolerance)
            rows.append(cell | {"measured": scores[cell["metric"]], "off": off, "ok": within})
    return rows


def lines(rows: Sequence[dict], cells: Sequence[dict]) -> list[str]:
    """A line for each compared cell, OK or off by so much, and the counts."""
    found = []
    for row in rows:
        verdict = "OK" if row["ok"] else f"off by {row['off']:+.4f}"
        place = f"{row['model']}  {row['task']}  {row['metric']}"
        found.append(f"{place}: expected {float(row['value']):.4f}, measured {row['measured']:.4f}  {verdict}")
    good = sum(row["ok"] for row in rows)
    left = f"{len(cells) - len(rows)} of {len(cells)} cells were not measured here"
    if several := sum("+" in cell["split"] for cell in cells):
        left += f", among them {several} of splits together (dev+test), which one run does not give"
    return [*found, f"{good} of {len(rows)} cells OK; {left}"]
