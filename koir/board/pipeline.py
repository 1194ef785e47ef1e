"""One pipeline: what each of its stages adds, by task, by depth and by query."""

from collections.abc import Sequence

import streamlit as st

from koir.board import charts, state, tables, texts
from koir.board.labels import metric_label, verbatim
from koir.board.page import Page, download, downloads, metric_control, show_short, show_table
from koir.board.rows import Row, ends_before
from koir.board.standing import values_of
from koir.errors import ResultError
from koir.evaluation.significance import paired
from koir.evaluation.stored import Stored, per_query, query_rows
from koir.text_tables import markdown_table

OUTCOMES = ("", "won", "lost", "same")


def pipeline(page: Page) -> None:
    """The view."""
    rows = {row.name: row for row in page.board.ours}
    if not rows:
        st.info(page.word["no_rows"])
        return
    columns = st.columns([2, 1.4, 1.4])
    with columns[0]:
        names = sorted(rows, key=lambda name: (rows[name].reranker is None, name))
        name = state.pick(st.selectbox, page.word["name"], names, "pipeline")
    metric = metric_control(page, columns[1:])
    row = rows[name]
    base = first_stage_alone(row, page.board.ours)
    if row.reranker and base is None:
        st.caption(page.word["no_first_stage"])
    show_short(page, [other for other in page.board.ours if other.family == row.family], metric)
    steps = [step(page, row, base, task, metric) for task in row.stored]
    _ladder(page, name, steps, metric)
    _depths(page, row, base, metric)
    _queries(page, row, base, metric)


def first_stage_alone(row: Row, ours: Sequence[Row]) -> Row | None:
    """The row of the same first stage without a reranker."""
    if row.reranker is None:
        return None
    same = ("first_stage", "fusion", "weight")  # where its index lies changes no score
    wanted = _settings(row)
    for other in ours:
        if other.reranker is None and all(_settings(other).get(key) == wanted.get(key) for key in same):
            return other
    return None


def _settings(row: Row) -> dict:
    return next(iter(row.stored.values())).koir["pipeline"]


def step(page: Page, row: Row, base: Row | None, task: str, metric: str) -> dict:
    """One task's record: both stages' scores, the gain and its test, queries won and lost, the ceiling."""
    stored = row.stored[task]
    before = base.stored.get(task) if base else None
    record = {"task": task, "queries": stored.koir.get("queries")}
    alone = stored if row.reranker is None else before
    record["first_stage"] = alone.metrics.get(metric) if alone else None
    record["reranked"] = stored.metrics.get(metric) if row.reranker else None
    record |= dict.fromkeys(("gain", "low", "high", "p", "won", "lost", "same"))
    record["candidate_recall"] = stored.koir.get("candidate_recall")
    record["ceiling"] = _ceiling(page, before, row.depth, metric) if before and row.depth else None
    if row.reranker and before and not ends_before(row, metric):
        record |= _gain(page, stored, before, metric)
    return record


def _gain(page: Page, stored: Stored, before: Stored, metric: str) -> dict:
    try:
        after, first = values_of(stored, metric), values_of(before, metric)
    except ResultError as error:
        st.warning(verbatim(str(error)))
        return {}
    shared = [query for query in after if query in first]
    return difference(page.stamp, [after[q] for q in shared], [first[q] for q in shared]) if shared else {}


@st.cache_data(show_spinner=False, max_entries=512)
def difference(stamp: str, first: list[float], second: list[float]) -> dict:
    """gain, its 95% interval, p, and queries won, lost and tied, of per-query values in the same order."""
    found = paired(first, second)
    low, high = found["interval"]
    gain = {"gain": found["difference"], "low": low, "high": high, "p": found["p"]}
    return gain | {"won": found["won"], "lost": found["lost"], "same": found["tied"]}


def _ceiling(page: Page, before: Stored, depth: int, metric: str) -> float | None:
    return _best(page.stamp, str(before.file), depth, metric, before)


@st.cache_data(show_spinner=False, max_entries=512)
def _best(stamp: str, file: str, depth: int, metric: str, _before: Stored) -> float | None:
    """The mean of a metric if all right answers among the first `depth` candidates came first; None for fewer."""
    if (_before.koir["pipeline"].get("depth") or depth) < depth:
        return None
    try:
        scores = per_query(query_rows(_before), depth)
    except ResultError:
        return None
    values = [of_query[metric] for of_query in scores.values() if metric in of_query]
    return sum(values) / len(values) if values else None


def _ladder(page: Page, name: str, steps: list[dict], metric: str) -> None:
    word = page.word
    names = (word["first_stage"], word["reranked"], word["ceiling"])
    keys = ("first_stage", "reranked", "ceiling")
    bars = [
        {"task": record["task"], "stage": shown, "value": record[key]}
        for record in steps
        for key, shown in zip(keys, names, strict=True)
        if record[key] is not None
    ]
    st.altair_chart(charts.stages(bars, metric_label(metric), names, word), width="stretch")
    header = [word["task"], *names, word["gain"], word["interval"], "p", word["won"], word["lost"], word["same"]]
    header.append(word["candidate_recall"])
    lines = [
        [
            record["task"], *(tables.number(record[key]) for key in keys), _signed(record["gain"]),
            "–" if record["low"] is None else f"{_signed(record['low'])} – {_signed(record['high'])}",
            tables.number(record["p"]), *("–" if record[key] is None else str(record[key]) for key in OUTCOMES[1:]),
            tables.number(record["candidate_recall"]),
        ]
        for record in steps
    ]  # fmt: skip
    show_table(page, header, lines, f"{name}, {metric_label(metric)}")
    st.caption(word["ceiling_say"])
    facts = {"pipeline": name, "metric": metric}
    downloads(page, f"{name}-{metric}", steps, markdown_table(header, lines), facts)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _depths(page: Page, row: Row, base: Row | None, metric: str) -> None:
    word = page.word
    family = sorted((r for r in page.board.ours if r.depth and r.family == row.family), key=lambda r: r.depth)
    if row.reranker is None or len(family) < 2:
        return
    records = []
    for one in family:
        for task, stored in one.stored.items():
            at = {"task": task, "depth": one.depth}
            records.append(at | {"stage": word["reranked"], "value": stored.metrics.get(metric)})
            before = base.stored.get(task) if base else None
            if before:
                ceiling = _ceiling(page, before, one.depth, metric)
                records.append(at | {"stage": word["ceiling"], "value": ceiling})
    st.subheader(word["depth"])
    records = [record for record in records if record["value"] is not None]
    st.altair_chart(charts.by_depth(records, metric_label(metric), word), width="stretch")
    depths = [one.depth for one in family]
    found = {(record["task"], record["depth"], record["stage"]): record["value"] for record in records}
    lines = [
        [f"{task}, {stage}", *(tables.number(found.get((task, depth, stage))) for depth in depths)]
        for task in row.stored
        for stage in (word["reranked"], word["ceiling"])
    ]
    show_table(page, [word["task"], *map(str, depths)], lines, f"{word['depth']}, {metric_label(metric)}")


def _queries(page: Page, row: Row, base: Row | None, metric: str) -> None:
    word = page.word
    st.subheader(word["per_query"])
    columns = st.columns(4)
    with columns[0]:
        task = state.pick(st.selectbox, word["task"], list(row.stored), "on")
    stored, before = row.stored[task], base.stored.get(task) if base else None
    with columns[1]:
        outcome = ""
        if before:
            shown = lambda key: word[key] if key else word["all"]  # noqa: E731
            outcome = state.pick(st.selectbox, word["show"], OUTCOMES, "outcome", shown=shown)
    with columns[2]:
        wanted = state.written(word["search_queries"], "q").casefold()
    with columns[3]:
        most = state.pick(st.selectbox, word["most"], [20, 100, 1000], "most")
    try:
        after, rows = values_of(stored, metric), {line["query_id"]: line for line in query_rows(stored)}
        first = values_of(before, metric) if before else {}
    except ResultError as error:
        st.warning(f"{word['by_query_missing']}: {verbatim(str(error))}")
        return
    if not after:
        st.info(word["no_per_query"])
        return
    known = texts.task_of(stored)
    if known is None:
        st.caption(word["ids_only"])
    lines = [_query_line(rows[query], value, first.get(query), known) for query, value in after.items()]
    lines = [line for line in lines if _fits(line, outcome, wanted)]
    lines.sort(key=lambda line: (-abs(line["difference"] or 0), line["value"], line["query_id"]))
    header = [word["query"], "id", word["right"], metric_label(metric)]
    header += [word["first_stage"], word["difference"]] if before else []
    shown = [
        [line["text"], line["query_id"], str(line["rank"] or "–"), tables.number(line["value"])]
        + ([tables.number(line["before"]), _signed(line["difference"])] if before else [])
        for line in lines[:most]
    ]
    show_table(page, header, shown, f"{task}, {len(shown)}/{len(lines)} {word['queries']}")
    download(page, "CSV", tables.as_csv(lines), f"{row.name}-{task}-queries", "queries")
    _documents(page, [line["query_id"] for line in lines[:most]], rows, before, known)


def _query_line(row: dict, value: float, before: float | None, known: object) -> dict:
    right = set(row["relevant"])
    rank = next((place for place, document in enumerate(row["top"], 1) if document in right), None)
    line = {"query_id": row["query_id"], "text": texts.query_text(known, row["query_id"]), "rank": rank}
    return line | {"value": value, "before": before, "difference": None if before is None else value - before}


def _fits(line: dict, outcome: str, wanted: str) -> bool:
    if wanted and wanted not in f"{line['text']} {line['query_id']}".casefold():
        return False
    change = line["difference"] or 0
    return {"": True, "won": change > 0, "lost": change < 0, "same": change == 0}[outcome]


def _documents(page: Page, queries: list[str], rows: dict, before: Stored | None, known: object) -> None:
    """The ten best documents of one query, after and before reranking."""
    word = page.word
    if not queries:
        return
    name = lambda query: texts.query_text(known, query)  # noqa: E731
    query = state.pick(st.selectbox, word["order"], queries, "query", shown=name)
    row, ranks = rows[query], {}
    if before:
        try:
            earlier = next((line for line in query_rows(before) if line["query_id"] == query), {"top": []})
            ranks = {document: place for place, document in enumerate(earlier["top"], 1)}
        except ResultError as error:
            st.warning(verbatim(str(error)))
    lines = []
    for place, document in enumerate(row["top"][:10], 1):
        was = str(ranks.get(document, "–"))
        right = "✓" if document in row["relevant"] else ""
        lines.append([str(place), *([was] if before else []), right, texts.document_text(known, document)])
    header = [word["after"], word["before"]] if before else [word["rank"]]
    header += [word["answer"], word["document"]]
    show_table(page, header, lines, name(query))
