"""Rows of the board: our pipelines and published models, cell by cell, on the tasks of a group."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from koir.errors import ResultError
from koir.evaluation.published import Cell, Published
from koir.evaluation.stored import Stored, read_results

OWN = "own"
ORDER = ("koe5", "kure", "kor-v2")  # of groups; KURE's own files, unrounded, before tables that repeat their numbers
SIZES = {"<100M": (0, 1e8), "100M-500M": (1e8, 5e8), "500M-1B": (5e8, 1e9), ">1B": (1e9, float("inf"))}
UNKNOWN = "?"


@dataclass(frozen=True)
class Row:
    """A pipeline of ours or a published model. cells: task -> metric -> Cell; stored: ours, by task."""

    name: str
    ours: bool
    kinds: frozenset[str]
    cells: dict[str, dict[str, Cell]]
    stored: dict[str, Stored] = field(default_factory=dict)
    first_stage: str | None = None
    reranker: str | None = None
    depth: int | None = None
    parameters: int | None = None
    pairs_per_second: float | None = None

    @property
    def size(self) -> str:
        """The class of SIZES that its parameters fall in."""
        known = self.parameters is not None
        return next((name for name, (low, high) in SIZES.items() if known and low <= self.parameters < high), UNKNOWN)

    @property
    def family(self) -> tuple:
        """What rows that differ in depth alone have in common."""
        pipeline = next((one.koir["pipeline"] for one in self.stored.values()), {})
        same = [pipeline.get(key) for key in ("fusion", "weight", "passage_tokens", "normalise")]
        return self.first_stage, self.reranker, *same, pipeline.get("interpolate") is not None

    def milliseconds(self, tasks: Iterable[str]) -> float | None:
        """Mean milliseconds a query over those of the tasks that it was measured on."""
        found = [self.stored[task].koir.get("milliseconds_per_query") for task in tasks if task in self.stored]
        found = [number for number in found if number is not None]
        return sum(found) / len(found) if found else None


def ends_before(row: Row, metric: str) -> bool:
    """Whether a reranker's lists end before the rank that a metric looks at, as ndcg_at_10 does at 10."""
    return bool(row.depth) and row.depth < int(metric.rpartition("_")[2])


@dataclass(frozen=True)
class Board:
    """Everything on disk. groups: name -> its tasks; clashes: tasks whose name stands for several data."""

    ours: list[Row]
    published: list[Published]
    broken: list[ResultError]
    groups: dict[str, list[str]]
    clashes: list[str]

    def rows(self, group: str) -> list[Row]:
        """The rows that have at least one task of a group; published ones where their protocol allows it."""
        tasks = set(self.groups[group])
        others = [] if group == OWN else published_rows(self.published, group)
        comparable = next((table.comparable for table in self.published if table.name == group), True)
        ours = self.ours if comparable else []
        return [row for row in [*ours, *others] if tasks & row.cells.keys()]

    def title(self, group: str, language: str) -> str | None:
        """A published group's title."""
        return next((table.title[language] for table in self.published if table.name == group), None)

    def protocol(self, group: str, language: str) -> str:
        """How a published group was measured."""
        return next((table.protocol[language] for table in self.published if table.name == group), "")


def read_board(results: Path, published: Path | None = None) -> Board:
    """Read a results folder. published: where tables lie if the folder has none of its own."""
    stored, tables, broken = read_results(results)
    if not (Path(results) / "published").is_dir() and published is not None:
        _, tables, more = read_results(published)
        broken += more
    stored, mixed = _of_one_pipeline(stored)
    broken += mixed
    keys, clashes = _task_keys(stored, tables)
    named: dict[str, dict[str, Stored]] = {}
    for one in stored:
        named.setdefault(one.file.parent.name, {})[keys[one.file]] = one
    ours = [_ours(tasks) for tasks in named.values()]
    tables.sort(key=lambda table: (ORDER.index(table.name) if table.name in ORDER else len(ORDER), table.name))
    offered = [table for table in tables if table.group]
    groups = {table.name: list(table.tasks) for table in offered}
    count = Counter(task for row in ours for task in row.cells)
    return Board(ours, tables, broken, {OWN: sorted(count, key=lambda task: (-count[task], task))} | groups, clashes)


def _of_one_pipeline(stored: Sequence[Stored]) -> tuple[list[Stored], list[ResultError]]:
    """Results of the newest pipeline of each name, and an error for each of another: their mean is nobody's."""
    newest: dict[Path, tuple[float, object]] = {}
    for one in stored:
        made = one.file.stat().st_mtime, one.koir.get("pipeline_key")
        newest[one.file.parent] = max(newest.get(one.file.parent, made), made, key=lambda pair: pair[0])
    same, others = [], []
    for one in stored:
        (same if one.koir.get("pipeline_key") == newest[one.file.parent][1] else others).append(one)
    found, expected = "a result of other weights or settings", "the newest's beside it: evaluate it again"
    return same, [ResultError(str(one.file), found, expected) for one in others]


def _task_keys(stored: Sequence[Stored], tables: Sequence[Published]) -> tuple[dict[Path, str], list[str]]:
    """A name for each result's task. Another split than the usual one, or other data, makes it another task."""
    usual = {task: facts["split"] for table in tables for task, facts in table.tasks.items()}
    keys, data = {}, {}
    for one in stored:
        split = usual.get(one.task, "test")
        keys[one.file] = one.task if one.split == split else f"{one.task} ({one.split})"
        data.setdefault(keys[one.file], Counter())[one.koir.get("task_fingerprint")] += 1
    for one in stored:
        of_task = data[keys[one.file]]
        fingerprint = one.koir.get("task_fingerprint")
        if len(of_task) > 1 and fingerprint != of_task.most_common(1)[0][0]:
            keys[one.file] += f" #{str(fingerprint)[:6]}"
    return keys, sorted(task for task, found in data.items() if len(found) > 1)


def _ours(tasks: dict[str, Stored]) -> Row:
    first = next(iter(tasks.values()))
    pipeline = first.koir["pipeline"]
    stage, reranker = pipeline["first_stage"], pipeline.get("reranker")
    kinds = {stage.partition(":")[0]} | ({"reranker"} if reranker else set())
    cells = {
        task: {metric: Cell(value, str(one.file), "") for metric, value in one.metrics.items()}
        for task, one in tasks.items()
    }
    depth = pipeline.get("depth") if reranker else None
    parameters = first.koir.get("parameters")
    if isinstance(parameters, dict):
        parameters = sum(number or 0 for number in parameters.values())
    return Row(first.file.parent.name, True, frozenset(kinds), cells, tasks, stage, reranker, depth, parameters)


def published_rows(tables: Sequence[Published], group: str) -> list[Row]:
    """One row a model: the cells of the group's own table first, those of other tables where that one has none."""
    own = next((table for table in tables if table.name == group), None)
    if own is not None and not own.comparable:
        chosen = [own]
    else:
        chosen = sorted((table for table in tables if table.comparable), key=lambda table: table is not own)
    merged: dict[str, list] = {}
    for table in chosen:
        for model in table.models:
            merged.setdefault(model.name, []).append(model)
    rows = []
    for name, models in merged.items():
        cells: dict[str, dict[str, Cell]] = {}
        for model in models:
            for task, metrics in model.cells.items():
                cells[task] = metrics | cells.get(task, {})
        known = {key: _first(models, key) for key in ("parameters", "depth", "pairs_per_second")}
        rows.append(Row(name, False, frozenset({models[0].kind}), cells, **known))
    return rows


def _first(models: Sequence[object], name: str) -> object:
    return next((value for model in models if (value := getattr(model, name)) is not None), None)
