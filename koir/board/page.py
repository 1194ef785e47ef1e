"""What every view is given, and the pieces that views share: the choice of rows, tables, downloads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import streamlit as st

from koir.board import state, tables
from koir.board.labels import KS, METRICS, few, metric_label, verbatim
from koir.board.rows import OWN, SIZES, UNKNOWN, Board, Row, read_board
from koir.board.standing import Standing
from koir.errors import ResultError

FILES = {"CSV": ("csv", "text/csv"), "Markdown": ("md", "text/markdown"), "JSON": ("json", "application/json")}
STYLE = """<style>
.koir-table{overflow-x:auto;max-width:100%}
.koir-table table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;width:100%}
.koir-table caption{text-align:left;caption-side:top;color:#52606d;padding:.2rem 0}
.koir-table th,.koir-table td{padding:.28rem .55rem;border-bottom:1px solid #e4e7eb;text-align:right;
  white-space:nowrap;color:#1f2933}
.koir-table thead th{border-bottom:2px solid #9aa5b1;vertical-align:bottom;font-weight:600}
.koir-table thead th.task{white-space:normal;overflow-wrap:anywhere;min-width:5.2rem}
.koir-table th.name,.koir-table th[scope=row]{text-align:left;font-weight:500;white-space:normal;
  overflow-wrap:anywhere;min-width:9.5rem;max-width:22rem}
.koir-table td.text,.koir-table th.text{text-align:left}
.koir-table td.long,.koir-table th.long{white-space:normal;text-align:left;overflow-wrap:anywhere}
.koir-table td.long{min-width:8rem;max-width:40rem;word-break:keep-all}
.koir-table tr.ours th.name{border-left:4px solid #2f6fb3}
.koir-table tr.published th.name{border-left:4px solid #c3c9d0}
.koir-table tr.right td,.koir-table tr.right th{background:#e6f4ea}
.koir-badge{background:#fff3c4;border:1px solid #e0b93b;border-radius:.6rem;padding:0 .4rem}
.koir-small{font-size:.8rem;color:#52606d;margin:.3rem 0 0}.koir-notes{padding-left:1.4rem}
.koir-table a{color:#1d5fa8}
div[data-testid=stMainBlockContainer]{padding:2.6rem 2rem 3rem}
@media(max-width:640px){div[data-testid=stMainBlockContainer]{padding:3rem .8rem 2rem}
 h1{font-size:1.5rem!important}.koir-table th.name,.koir-table th[scope=row]{position:sticky;left:0;
 background:#fff;min-width:7.5rem;max-width:9.5rem;font-size:.78rem}
 .koir-table th,.koir-table td{padding:.28rem .4rem}}
</style>"""


@dataclass(frozen=True)
class Page:
    """What a view needs to know. stamp: changes whenever a file does, so that what is cached goes stale with it."""

    board: Board
    word: dict[str, str]
    language: str
    results: Path
    outputs: Path
    stamp: str

    def group_title(self, group: str) -> str:
        """A task group's name for people."""
        return self.word["own"] if group == OWN else self.board.title(group, self.language) or group


@st.cache_resource(show_spinner=False, max_entries=4)
def load(stamp: str, results: str, published: str) -> Board:
    """The board of a results folder, read once for each state of its files. published: see `read_board`."""
    return read_board(Path(results), Path(published))


def metric_control(page: Page, columns: Sequence) -> str:
    """The metric and its k, in two columns; returns `ndcg_at_10` and the like."""
    with columns[0]:
        name = state.pick(st.selectbox, page.word["metric"], list(METRICS), "metric", shown=METRICS.get)
    with columns[1]:
        k = state.pick(st.radio, page.word["k"], KS, "k", 10, horizontal=True)
    return f"{name}_at_{k}"


def choose_rows(page: Page) -> tuple[str, list[Row], list[str], str]:
    """Group, metric and filters. Returns the group, its rows that are left, the tasks chosen, and the metric."""
    board, word = page.board, page.word
    groups = [group for group in board.groups if board.rows(group)]
    columns = st.columns([2, 1.4, 1.4])
    with columns[0]:
        group = state.pick(st.selectbox, word["group"], groups, "group", shown=page.group_title)
    metric = metric_control(page, columns[1:])
    tasks, rows = list(board.groups[group]), board.rows(group)
    active = [key for key in ("search", "kind", "size", "whose", "depth", "task") if key in st.query_params]
    with st.expander(word["filters"] + (f" ({len(active)})" if active else ""), expanded=bool(active)):
        rows, tasks = _filtered(page, rows, tasks)
    if len(tasks) > 1 and state.switched(word["complete_rows"], "complete"):
        rows = [row for row in rows if not missing(row, tasks, metric)]
    return group, rows, tasks, metric


def missing(row: Row, tasks: Sequence[str], metric: str) -> list[str]:
    """The tasks that a row has no value for."""
    cells = {task: row.cells.get(task, {}).get(metric) for task in tasks}
    return [task for task, cell in cells.items() if cell is None or cell.value is None]


def _filtered(page: Page, rows: list[Row], tasks: list[str]) -> tuple[list[Row], list[str]]:
    word, columns = page.word, st.columns(3)
    with columns[0]:
        wanted = state.written(word["search"], "search").casefold()
        task = state.pick(st.selectbox, word["task"], ["", *tasks], "task", shown=lambda name: name or word["all"])
    with columns[1]:
        whose = {"": word["all"], "ours": word["ours"], "published": word["published"]}
        side = state.pick(st.selectbox, word["origin"], list(whose), "whose", shown=whose.get)
        kinds = state.pick_some(word["kind"], sorted({kind for row in rows for kind in row.kinds}), "kind")
    with columns[2]:
        sizes = state.pick_some(word["size"], [*SIZES, UNKNOWN], "size")
        depths = sorted({row.depth or 0 for row in rows})
        name = lambda depth: str(depth) if depth else word["no_depth"]  # noqa: E731
        depth = state.pick_some(word["depth"], depths, "depth", shown=name)
    tasks = [task] if task else tasks
    fits = [
        (not wanted, lambda row: wanted in row.name.casefold()),
        (not side, lambda row: row.ours == (side == "ours")),
        (not kinds, lambda row: row.kinds & set(kinds)),
        (not sizes, lambda row: row.size in sizes),
        (not depth, lambda row: (row.depth or 0) in depth),
    ]
    return [row for row in rows if all(idle or fit(row) for idle, fit in fits)], tasks


def show_common(
    page: Page, found: Sequence[Standing], common: Sequence[str], tasks: Sequence[str], metric: str
) -> None:
    """Say what the mean is over, whose gaps keep the other tasks out of it, and whose lists are short."""
    word = page.word
    unranked = [one.row.name for one in found if one.mean is None]
    partial = [one for one in found if one.mean is not None and len(one.values) < one.tasks]
    partial = [one.row.name for one in sorted(partial, key=lambda one: len(one.values))]
    if unranked:
        st.warning(word["common_none"].format(n=len(unranked), names=few(unranked)))
    if len(tasks) > 1:
        said = [word["common"].format(n=len(common), m=len(tasks), tasks=verbatim(", ".join(common)))]
        if partial:
            said.append(word["partial"].format(n=len(partial), names=few(partial)))
        st.caption(" ".join(said))
    show_short(page, [one.row for one in found], metric)


def show_short(page: Page, rows: Sequence[Row], metric: str) -> None:
    """Name the rows whose lists end before the metric's k."""
    if said := tables.short_lists(rows, metric, page.word):
        st.caption(said)


def show_broken(errors: Sequence[ResultError], title: str) -> None:
    """Name files that could not be read. title: with {n}, how many they are."""
    with st.expander("⚠ " + title.format(n=len(errors)), expanded=len(errors) <= 3):
        st.text("\n".join(str(error) for error in errors))


def link(page: Page, name: str) -> str:
    """The URL of a pipeline's view, with the metric and language as they are now."""
    kept = {key: st.query_params[key] for key in ("lang", "metric", "k") if key in st.query_params}
    return "?" + urlencode({"view": "pipeline", "pipeline": name} | kept)


def downloads(page: Page, name: str, records: Sequence[dict], markdown: str, facts: dict) -> None:
    """The table's three download buttons. facts: what the JSON file says of its records."""
    texts = {"CSV": tables.as_csv(records), "Markdown": markdown + "\n", "JSON": tables.as_json(facts, records)}
    with st.container(horizontal=True):
        for kind, text in texts.items():
            download(page, kind, text, name, kind)


def download(page: Page, kind: str, text: str, name: str, key: str) -> None:
    """A button that saves a text as a file of a kind. key: what tells it from the page's other buttons."""
    ending, mime = FILES[kind]
    content = text.encode("utf-8-sig" if kind == "CSV" else "utf-8")  # without its mark, Excel garbles Hangul
    label = page.word["download"].format(kind=kind)
    st.download_button(label, content, f"{name}.{ending}", mime, key=f"download-{key}", on_click="ignore")


def show_table(page: Page, header: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> None:
    """Texts as a table of the page."""
    st.html(tables.simple_html(header, lines, caption, page.language))


def show_standings(page: Page, found: list[Standing], tasks: list[str], common: list[str], metric: str, group: str):
    """The table as HTML or as a grid."""
    word = page.word
    if st.session_state.get("grid"):
        st.dataframe(tables.records(found, tasks, common), hide_index=True)
        return
    caption = f"{page.group_title(group)}, {metric_label(metric)}"
    follow = lambda name: link(page, name)  # noqa: E731
    st.html(tables.as_html(found, tasks, common, metric, page.language, word, caption, follow))
