"""The board's tables as records, CSV, JSON, Markdown and HTML that a screen reader reads."""

import csv
import html
import io
import json
import re
from collections.abc import Callable, Sequence

from koir.board.labels import few
from koir.board.rows import Board, Row, ends_before
from koir.board.standing import Standing
from koir.text_tables import markdown_table

DIGITS = 4
BREAK = re.compile(
    "(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[-_])"
)  # where a task's name may go on in the next line
NUMBER = re.compile(r"[-+–0-9.,/ BMk✓●]*")


def number(value: float | None, digits: int = DIGITS) -> str:
    """A score as it is printed everywhere; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def between(interval: tuple[float, float] | None) -> str:
    """An interval of scores; a dash where there is none."""
    return f"{number(interval[0])}–{number(interval[1])}" if interval else "–"


def short_lists(rows: Sequence[Row], metric: str, word: dict) -> str:
    """Names rows whose lists end before the metric's k, and the k that they reach; empty without such a row."""
    short = [row for row in rows if ends_before(row, metric)]
    if not short:
        return ""
    depths = sorted({row.depth for row in short})
    names, k = few([row.name for row in short]), metric.rpartition("_")[2]
    return word["short"].format(depths=", ".join(map(str, depths)), k=k, least=depths[0], names=names)


def measured(value: float | None) -> str:
    """Milliseconds and the like; below 1, two digits that say something."""
    return number(value, 1) if value is None or value >= 1 else f"{value:.2g}"


def count(value: float | None) -> str:
    """A number of parameters, shortened."""
    if value is None:
        return "–"
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:,.0f}"


def records(found: Sequence[Standing], tasks: Sequence[str], common: Sequence[str]) -> list[dict]:
    """One record a row, whole numbers of everything the table shows; keys do not depend on the language."""
    lines = []
    for one in found:
        row = one.row
        low, high = one.interval or (None, None)
        line = {"rank": one.rank, "name": row.name, "ours": row.ours, "kind": "+".join(sorted(row.kinds))}
        line |= {"mean": one.mean, "low": low, "high": high, "coverage": one.coverage}
        line |= {task: one.values.get(task) for task in tasks}
        line |= {"milliseconds_per_query": row.milliseconds(common or tasks), "parameters": row.parameters}
        line |= {"depth": row.depth, "pairs_per_second": row.pairs_per_second, "tied_with": one.tied}
        lines.append(line)
    return lines


def as_csv(lines: Sequence[dict]) -> str:
    """Comma-separated, numbers unrounded; lists, and names with their numbers, joined by semicolons."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: _joined(value) for key, value in line.items()})
    return out.getvalue()


def _joined(value: object) -> object:
    if isinstance(value, dict):
        value = [f"{name} {number}" for name, number in value.items()]
    return "; ".join(value) if isinstance(value, list) else value


def as_json(facts: dict, lines: Sequence[dict]) -> str:
    """The records under `rows`, beside what they are of."""
    return json.dumps(facts | {"rows": list(lines)}, ensure_ascii=False, indent=2) + "\n"


def _rank(one: Standing) -> str:
    return "–" if one.rank is None else ("=" if one.tied else "") + str(one.rank)


def columns(found: Sequence[Standing], tasks: Sequence[str]) -> list[str]:
    """Keys of the columns that have something to show, tasks by name."""
    shown = ["rank", "name", "origin"] + (["mean"] if len(tasks) > 1 else [])
    shown += ["interval"] * any(one.interval for one in found) + ["coverage"] * (len(tasks) > 1) + list(tasks)
    shown += ["milliseconds"] * any(one.row.milliseconds(tasks) is not None for one in found)
    shown += ["parameters"] * any(one.row.parameters is not None for one in found)
    shown += ["depth"] * any(one.row.depth for one in found)
    return shown + ["pairs_per_second"] * any(one.row.pairs_per_second for one in found)


def cell_text(one: Standing, column: str, tasks: Sequence[str], common: Sequence[str], word: dict) -> str:
    """What stands in a cell, as plain text."""
    row = one.row
    plain: dict[str, Callable[[], str]] = {
        "rank": lambda: _rank(one),
        "name": lambda: row.name,
        "origin": lambda: word["ours" if row.ours else "published"],
        "mean": lambda: number(one.mean),
        "interval": lambda: between(one.interval),
        "coverage": lambda: one.coverage,
        "milliseconds": lambda: measured(row.milliseconds(common or tasks)),
        "parameters": lambda: count(row.parameters),
        "depth": lambda: str(row.depth or "–"),
        "pairs_per_second": lambda: measured(row.pairs_per_second),
    }
    return plain[column]() if column in plain else number(one.values.get(column))


def as_markdown(found: Sequence[Standing], tasks: Sequence[str], common: Sequence[str], word: dict) -> str:
    """A Markdown table of what the page shows."""
    shown = columns(found, tasks)
    header = [word.get(column, column) for column in shown]
    lines = [[cell_text(one, column, tasks, common, word) for column in shown] for one in found]
    return markdown_table(header, lines, [n for n, column in enumerate(shown) if column not in ("name", "origin")])


def as_html(
    found: Sequence[Standing],
    tasks: Sequence[str],
    common: Sequence[str],
    metric: str,
    language: str,
    word: dict,
    caption: str,
    follow: Callable[[str], str],
) -> str:
    """The same as an HTML table: header cells with a scope, a caption, sources as links, notes below it.

    follow: the link of a pipeline of ours, from its name.
    """
    shown = columns(found, tasks)
    notes: list[str] = []
    body = []
    for one in found:
        cells = [_html_cell(one, column, (tasks, common, metric, language, word), notes, follow) for column in shown]
        body.append(f'<tr class="{"ours" if one.row.ours else "published"}">{"".join(cells)}</tr>')
    titles = {column: html.escape(word.get(column, column)) for column in shown}
    titles |= {task: BREAK.sub("<wbr>", titles[task]) for task in tasks}
    head = "".join(f'<th scope="col" class="{_class(column, tasks)}">{titles[column]}</th>' for column in shown)
    table = plain_table(head, body, caption, language)
    if notes:
        items = "".join(f'<li value="{place}">{html.escape(note)}</li>' for place, note in enumerate(notes, 1))
        table += f'<p class="koir-small">{html.escape(word["notes"])}</p><ol class="koir-small koir-notes">{items}</ol>'
    return table


def plain_table(head: str, body: Sequence[str], caption: str, language: str) -> str:
    """A table that scrolls sideways where the window is narrow, reachable with the keyboard."""
    label = html.escape(caption, quote=True)
    return (
        f'<div class="koir-table" lang="{language}" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def simple_html(header: Sequence[str], lines: Sequence[Sequence[str]], caption: str, language: str) -> str:
    """Texts as such a table: the first column names its row."""
    worded = [any(not NUMBER.fullmatch(line[place]) for line in lines) for place in range(len(header))]
    kinds = ["name" if place == 0 else "long" if worded[place] else "number" for place in range(len(header))]
    head = "".join(
        f'<th scope="col" class="{kind}">{html.escape(name)}</th>' for name, kind in zip(header, kinds, strict=True)
    )
    body = []
    for line in lines:
        cells = [f'<th scope="row" class="name">{html.escape(line[0])}</th>']
        cells += [
            f'<td class="{kind}">{html.escape(text)}</td>' for text, kind in zip(line[1:], kinds[1:], strict=True)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return plain_table(head, body, caption, language)


def _class(column: str, tasks: Sequence[str]) -> str:
    return "name" if column == "name" else "text" if column == "origin" else "task" if column in tasks else "number"


def _html_cell(one: Standing, column: str, shown: tuple, notes: list[str], follow: Callable[[str], str]) -> str:
    """One cell; a note that it needs is added to `notes`."""
    tasks, common, metric, language, word = shown
    row, text = one.row, html.escape(cell_text(one, column, tasks, common, word))
    if column == "name":
        if row.ours:
            text = f'<a href="{html.escape(follow(row.name))}" target="_self">{text}</a>'
        return f'<th scope="row" class="name">{text}</th>'
    title = ""
    if column == "rank" and one.tied:
        title = f"{word['tied']}: {', '.join(one.tied)}"
    cell = row.cells.get(column, {}).get(metric) if column in tasks else None
    if cell is not None and not row.ours:
        title = cell.source
        text = f'<a href="{html.escape(cell.url)}" target="_blank" rel="noopener">{text}</a>'
        if cell.note:
            said = f"{row.name}: {cell.note[language]}"
            notes.append(said) if said not in notes else None
            text += f"<sup>{notes.index(said) + 1}</sup>"
    if column == "coverage" and len(one.values) < one.tasks:
        text = f'<span class="koir-badge">{text}</span>'
    attribute = f' title="{html.escape(title, quote=True)}"' if title else ""
    return f'<td class="{_class(column, tasks)}"{attribute}>{text}</td>'


def facts(board: Board, group: str, metric: str, tasks: Sequence[str], common: Sequence[str]) -> dict:
    """What a JSON download says of itself."""
    urls = {
        (cell.source, cell.url.rpartition("/eval/")[0] or cell.url)
        for row in board.rows(group) if not row.ours
        for task in tasks for cell in row.cells.get(task, {}).values()
    }  # fmt: skip
    sources = [{"title": title, "url": url} for title, url in sorted(urls)]
    return {"group": group, "metric": metric, "tasks": list(tasks), "mean_over": list(common), "sources": sources}
