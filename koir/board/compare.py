"""Two pipelines of ours, query by query."""

from collections import Counter, defaultdict

import streamlit as st

from koir.board import charts, state, tables, texts
from koir.board.labels import metric_label, verbatim
from koir.board.page import Page, downloads, metric_control, show_short, show_table
from koir.board.pipeline import difference
from koir.board.standing import values_of
from koir.errors import ResultError
from koir.text_tables import markdown_table

BIGGEST = 10


def compare(page: Page) -> None:
    """The view."""
    word, ours = page.word, {row.name: row for row in page.board.ours}
    pairs = {name: [other for other in ours if other != name and ours[other].stored.keys() & ours[name].stored.keys()]
             for name in ours}  # fmt: skip
    names = sorted((name for name in ours if pairs[name]), key=lambda name: (ours[name].reranker is None, name))
    if not names:
        st.info(word["need_two"])
        return
    columns = st.columns(2)
    with columns[0]:
        first = state.pick(st.selectbox, word["first"], names, "a")
    with columns[1]:
        second = state.pick(st.selectbox, word["second"], pairs[first], "b")
    columns = st.columns([2, 1.4, 1.4])
    with columns[0]:
        shared = [task for task in ours[first].stored if task in ours[second].stored]
        task = state.pick(st.selectbox, word["task"], shared, "on")
    metric = metric_control(page, columns[1:])
    show_short(page, [ours[first], ours[second]], metric)
    one, two = ours[first].stored[task], ours[second].stored[task]
    try:
        a, b = values_of(one, metric), values_of(two, metric)
    except ResultError as error:
        st.warning(f"{word['by_query_missing']}: {verbatim(str(error))}")
        return
    queries = [query for query in a if query in b]
    if not queries:
        st.info(word["no_per_query"])
        return
    _summary(page, (first, second), difference(page.stamp, [a[q] for q in queries], [b[q] for q in queries]), metric)
    known = texts.task_of(one) or texts.task_of(two)
    lines = [
        {"query_id": q, "text": texts.query_text(known, q), "first": a[q], "second": b[q], "difference": a[q] - b[q]}
        for q in queries
    ]
    lines.sort(key=lambda line: (-line["difference"], line["query_id"]))
    _pictures(page, lines, first, second, metric)
    if known is None:
        st.caption(word["ids_only"])
    wins = [line for line in lines if line["difference"] > 0][:BIGGEST]
    losses = [line for line in reversed(lines) if line["difference"] < 0][:BIGGEST]
    header = [word["query"], "id", word["first"], word["second"], word["difference"]]
    for title, some in ((word["wins"], wins), (word["losses"], losses)):
        show_table(page, header, [_texts(line) for line in some], f"{title} ({len(some)})")
    facts = {"first": first, "second": second, "task": task, "metric": metric}
    markdown = markdown_table(header, [_texts(line) for line in lines])
    downloads(page, f"{task}-{metric}", lines, markdown, facts)


def _texts(line: dict) -> list[str]:
    numbers = [tables.number(line["first"]), tables.number(line["second"]), f"{line['difference']:+.4f}"]
    return [line["text"], line["query_id"], *numbers]


def _summary(page: Page, names: tuple[str, str], found: dict, metric: str) -> None:
    word = page.word
    header = [metric_label(metric), word["difference"], word["interval"], "p", word["won"], word["lost"], word["same"]]
    between = f"{found['low']:+.4f} – {found['high']:+.4f}"
    numbers = [f"{found['gain']:+.4f}", between, tables.number(found["p"])]
    numbers += [str(found[key]) for key in ("won", "lost", "same")]
    show_table(page, header, [[f"{names[0]} − {names[1]}", *numbers]], word["compare"])


def _bins(values: list[float]) -> list[dict]:
    """How many values fall in each tenth of -1 to 1, none of which holds zero."""
    places = Counter()
    for value in values:
        tenth = min(int(abs(value) * 10), 9)
        places[tenth if value > 0 else -tenth - 1] += 1
    bins = [{"low": place / 10, "high": (place + 1) / 10, "queries": n} for place, n in sorted(places.items())]
    return [one | {"between": f"{one['low']:+.1f} – {one['high']:+.1f}"} for one in bins]


def _pictures(page: Page, lines: list[dict], first: str, second: str, metric: str) -> None:
    word, same = page.word, defaultdict(list)
    for line in lines:
        same[(round(line["second"], 4), round(line["first"], 4))].append(line["text"])
    points = [{"x": x, "y": y, "queries": len(found), "query": found[0][:80]} for (x, y), found in same.items()]
    left, right = st.columns(2)
    left.altair_chart(charts.scatter(points, first, second, word), width="stretch")
    changed = [line["difference"] for line in lines if line["difference"]]
    title = f"{word['difference']}, {metric_label(metric)}"
    right.altair_chart(charts.differences(_bins(changed), title, word), width="stretch")
    right.caption(f"{word['same']}: {len(lines) - len(changed)}/{len(lines)} {word['queries']}")
