"""Training runs side by side: loss, speed and dev scores, and how many negatives each query really saw."""

import streamlit as st

from koir.board import charts, state, tables
from koir.board.labels import verbatim
from koir.board.page import Page, downloads, show_table
from koir.evaluation.stored import TrainingRun, training_runs
from koir.text_tables import markdown_table

SHOWN = 3  # runs at first, the newest


@st.cache_data(show_spinner=False, max_entries=4)
def _runs(stamp: str, folder: str) -> list[TrainingRun]:
    return list(training_runs(folder))


def training(page: Page) -> None:
    """The view."""
    word = page.word
    runs = {run.name: run for run in _runs(page.stamp, str(page.outputs))}
    if not runs:
        st.info(word["no_runs"].format(folder=verbatim(f"{page.outputs}/")))
        st.code("bash v1.1/scripts/finetune.sh", language="bash")
        return
    columns = st.columns([3, 2])
    with columns[0]:
        names = state.pick_some(word["runs"], list(runs), "run", placeholder=", ".join(list(runs)[:SHOWN]))
    with columns[1]:
        axis = state.pick(st.radio, word["axis"], ["step", "epoch", "seconds"], "x", shown=word.get, horizontal=True)
    chosen = [runs[name] for name in names or list(runs)[:SHOWN]]
    for run in chosen:
        if run.skipped:
            st.warning(word["skipped"].format(n=run.skipped, name=verbatim(run.name)))
    _facts(page, chosen)
    for key in ("loss", "tokens_per_second"):
        records = [
            {"run": run.name, "x": line[axis], "value": line[key]}
            for run in chosen
            for line in run.lines
            if key in line and axis in line
        ]
        if records:
            st.altair_chart(charts.curves(records, word[key], word[axis], len(records) < 80, word), width="stretch")
    records = [
        {"run": run.name, "task": key, "x": line[axis], "value": line[key]}
        for run in chosen
        for line in run.lines
        for key in line
        if "/" in key and axis in line
    ]
    if records:
        st.altair_chart(charts.curves(records, word["dev"], word[axis], True, word), width="stretch")


def _facts(page: Page, chosen: list[TrainingRun]) -> None:
    word = page.word
    records = [_summary(run) for run in chosen]
    header = [word["runs"], word["state"], word["trainer"], word["negatives"], word["steps"], word["loss"]]
    header += [word["tokens_per_second"], word["dev"]]
    lines = []
    for record in records:
        dev = ", ".join(f"{name} {tables.number(value)}" for name, value in record["best"].items()) or "–"
        lines.append(
            [record["run"], word["complete" if record["complete"] else "running"], record["trainer"] or "–",
             _count(record["negatives_per_query"]), _count(record["steps"]), tables.number(record["loss"]),
             _count(record["tokens_per_second"]), dev]
        )  # fmt: skip
    show_table(page, header, lines, word["training"])
    downloads(page, "training", records, markdown_table(header, lines), {})


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _summary(run: TrainingRun) -> dict:
    """What a run came to: its facts, its last loss and speed, the best of each dev score after the base's (step 0)."""
    last = {key: value for line in run.lines for key, value in line.items()}
    best: dict[str, float] = {}
    for line in run.lines:
        for key, value in line.items():
            if "/" in key and line.get("step") != 0:
                best[key] = max(value, best.get(key, value))
    kinds = {"trainer": str, "negatives_per_query": (int, float), "tokens_per_second": (int, float)}
    facts = {key: run.facts.get(key) if isinstance(run.facts.get(key), kind) else None for key, kind in kinds.items()}
    facts["tokens_per_second"] = facts["tokens_per_second"] or last.get("tokens_per_second")
    known = {"run": run.name, "complete": bool(run.facts), "steps": last.get("step"), "loss": last.get("loss")}
    return known | facts | {"best": best}
