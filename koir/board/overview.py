"""The ranking of a task group, and quality against cost."""

import streamlit as st

from koir.board import state, tables
from koir.board.labels import metric_label, verbatim
from koir.board.page import Page, choose_rows, downloads, show_broken, show_common, show_standings, show_table
from koir.board.standing import Standing, mark_ties, pareto, standings, unreadable
from koir.text_tables import markdown_table

BARS = 30


@st.cache_data(show_spinner=False, max_entries=64)
def _ties(stamp: str, metric: str, names: tuple, common: tuple, _found: list) -> list[tuple]:
    """rank, tied and tested of each row; kept until a file or the choice of rows changes."""
    mark_ties(_found, common, metric)
    return [(one.rank, one.tied, one.tested) for one in _found]


def _rank(page: Page, found: list[Standing], common: list[str], metric: str) -> None:
    names = tuple(one.row.name for one in found)
    marks = _ties(page.stamp, metric, names, tuple(common), found)
    for one, mark in zip(found, marks, strict=True):
        one.rank, one.tied, one.tested = mark


def overview(page: Page) -> None:
    """Pipelines and published models, ranked on their common tasks."""
    word = page.word
    group, rows, tasks, metric = choose_rows(page)
    found, common = standings(rows, tasks, metric)
    if not found:
        st.info(word["no_rows"])
        return
    show_common(page, found, common, tasks, metric)
    broken, chart, table, note = st.empty(), st.empty(), st.empty(), st.empty()
    with table.container():  # painted first: the picture's library takes a while to load, and so do the tests
        show_standings(page, found, tasks, common, metric, group)
    state.switched(word["grid"], "grid", help=word["grid_help"])
    from koir.board import charts

    bars = _bars(found)
    with chart.container():
        st.altair_chart(charts.bars(bars[:BARS], metric_label(metric), word), width="stretch")
        if len(bars) > BARS:
            st.caption(word["drawn"].format(n=BARS, m=len(bars)))
    if sum(common[0] in one.row.stored for one in found) > 1:
        note.caption(word["testing"])
        _rank(page, found, common, metric)
        note.caption(word["ranks"])
        with table.container():
            show_standings(page, found, tasks, common, metric, group)
    if errors := unreadable(found, common):
        with broken.container():
            show_broken(errors, word["untested"])
    lines = tables.records(found, tasks, common)
    facts = tables.facts(page.board, group, metric, tasks, common)
    downloads(page, f"{group}-{metric}", lines, tables.as_markdown(found, tasks, common, word), facts)
    if protocol := page.board.protocol(group, page.language):
        st.caption(protocol)


def _bars(found: list[Standing]) -> list[dict]:
    records = []
    for one in [one for one in found if one.mean is not None]:
        low, high = one.interval or (None, None)
        record = {"name": one.row.name, "mean": one.mean, "low": low, "high": high, "ours": one.row.ours}
        record |= {"interval": tables.between(one.interval), "coverage": one.coverage}
        records.append(record | {"text": f"{one.row.name}  {tables.number(one.mean)}"})
    return records


def cost(page: Page) -> None:
    """Quality against milliseconds a query, parameters or depth, with the Pareto front."""
    from koir.board import charts

    word = page.word
    group, rows, tasks, metric = choose_rows(page)
    kinds = ["milliseconds", "parameters", "depth"]
    by = state.pick(st.radio, word["cost_of"], kinds, "cost", shown=word.get, horizontal=True)
    found, common = standings(rows, tasks, metric)
    if not found:
        st.info(word["no_rows"])
        return
    show_common(page, found, common, tasks, metric)
    price = {
        "milliseconds": lambda row: row.milliseconds(common),
        "parameters": lambda row: row.parameters,
        "depth": lambda row: row.depth,
    }[by]
    points = [(one, price(one.row)) for one in found if one.mean is not None and price(one.row) is not None]
    if len(points) < len(found):
        st.caption(word["without_cost"].format(n=len(found) - len(points)))
    if not points:
        st.info(word["no_rows"])
        return
    records = [_point(page, one, paid, common) for one, paid in points]
    front = [records[place] for place in pareto([(paid, one.mean) for one, paid in points])]
    st.altair_chart(charts.cost(records, front, metric_label(metric), word[by], word), width="stretch")
    st.caption(word["pareto_say"].format(names=verbatim(", ".join(record["name"] for record in front))))
    on_front = {record["name"] for record in front}
    shown = sorted(records, key=lambda record: record["cost"])
    header = [word["name"], word[by], metric_label(metric), word["interval"], word["pareto"]]
    lines = [
        [record["name"], _price(by, record["cost"]), tables.number(record["mean"]), record["interval"],
         "●" if record["name"] in on_front else ""]
        for record in shown
    ]  # fmt: skip
    show_table(page, header, lines, f"{page.group_title(group)}, {word['cost']}")
    records = [record | {"pareto": record["name"] in on_front} for record in shown]
    facts = tables.facts(page.board, group, metric, tasks, common) | {"cost": by}
    downloads(page, f"{group}-{metric}-{by}", records, markdown_table(header, lines), facts)


def _price(by: str, value: float) -> str:
    return {"milliseconds": tables.measured, "parameters": tables.count, "depth": str}[by](value)


def _point(page: Page, one: Standing, paid: float, common: list[str]) -> dict:
    row, word = one.row, page.word
    return {
        "name": row.name,
        "cost": paid,
        "mean": one.mean,
        "interval": tables.between(one.interval),
        "milliseconds": tables.measured(row.milliseconds(common)),
        "parameters": tables.count(row.parameters),
        "depth": str(row.depth or "–"),
        "kind": "+".join(sorted(row.kinds)),
        "coverage": one.coverage,
        "origin": word["ours" if row.ours else "published"],
    }
