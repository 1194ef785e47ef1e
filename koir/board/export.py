"""The board's tables as a Markdown page, and in the README between its markers; no browser is needed."""

import sys
from pathlib import Path

from koir.board.labels import metric_label, words
from koir.board.rows import OWN, Board
from koir.board.standing import mark_ties, standings, unreadable
from koir.board.tables import as_markdown, facts, short_lists
from koir.errors import ResultError
from koir.manifest import write_text

METRIC = "ndcg_at_10"
MARKERS = ("<!-- leaderboard -->", "<!-- /leaderboard -->")


def write(board: Board, file: str, language: str, readme: Path) -> None:
    """Write every group's table to `file`; the first one also into `readme`, where that has both markers."""
    word = words(language)
    sections = [(group, *_section(board, group, language)) for group in board.groups if board.rows(group)]
    if not sections:
        print(f"nothing to export: {word['empty']} .venv/bin/python evaluate.py", file=sys.stderr)
        return
    heading = f"# {word['title']}\n\n{word['subtitle']} {word['ranks']}\n"
    parts = [heading]
    lost: list[str] = []
    for group, table, said, errors in sections:
        title = word["own"] if group == OWN else board.title(group, language)
        parts.append(f"## {title} ({metric_label(METRIC)})\n\n{said}\n\n{table}\n")
        lost += [str(error) for error in errors]
    for title, names in ((word["broken"], board.broken), (word["untested"], sorted(set(lost)))):
        if names:
            listed = "\n".join(f"- {name}" for name in names)
            parts.append(f"## {title.format(n=len(names))}\n\n{listed}\n")
    write_text(Path(file), "\n".join(parts))
    print(f"{file}: {len(sections)} tables")
    if _between_markers(readme, sections[0][1]):
        print(f"{readme.name}: the table between its markers")


def _section(board: Board, group: str, language: str) -> tuple[str, str, list[ResultError]]:
    """A group's table, what its mean is over and how it was measured, and the per-query rows that it lacks."""
    word, tasks = words(language), board.groups[group]
    found, common = standings(board.rows(group), tasks, METRIC)
    mark_ties(found, common, METRIC)
    said = [word["common"].format(n=len(common), m=len(tasks), tasks=", ".join(common))]
    said.append(short_lists([one.row for one in found], METRIC, word))
    said.append(board.protocol(group, language))
    links = [
        f"[{source['title']}]({source['url']})" for source in facts(board, group, METRIC, tasks, common)["sources"]
    ]
    said += [f"{word['sources']}: {', '.join(links)}."] if links else []
    return as_markdown(found, tasks, common, word), " ".join(filter(None, said)), unreadable(found, common)


def _between_markers(readme: Path, table: str) -> bool:
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, opening, rest = text.partition(MARKERS[0])
    _, closing, after = rest.partition(MARKERS[1])
    if not opening or not closing:
        return False
    write_text(readme, f"{before}{opening}\n{table}\n{closing}{after}")
    return True
