"""Who stands where: means over common tasks only, 95% intervals, and ranks that say which differences are real."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from koir.board.rows import Row
from koir.errors import ResultError
from koir.evaluation.significance import SIGNIFICANT, interval, paired_p
from koir.evaluation.stored import Stored, per_query, query_rows

CLOSE = (0.02, 0.12)  # where the normal approximation of p is not trusted,
MANY = 50  # nor with fewer differences than these, or where one has more than so much of their squares


@dataclass
class Standing:
    """A row with its values. mean: over the common tasks, None without any; rank: 1 + rows that are really better,
    and none below that of the row above."""

    row: Row
    values: dict[str, float]
    tasks: int
    mean: float | None = None
    interval: tuple[float, float] | None = None
    rank: int | None = None
    tied: list[str] = field(default_factory=list)
    tested: bool = False

    @property
    def coverage(self) -> str:
        """How many of the group's tasks it has."""
        return f"{len(self.values)}/{self.tasks}"


def standings(rows: Sequence[Row], tasks: Sequence[str], metric: str) -> tuple[list[Standing], list[str]]:
    """Rows by falling mean over the tasks that all of them have; also returns these common tasks.

    Where no task is common to all, those that have the most frequent one are ranked, on what they have in common; the
    others come after them, without a mean.
    """
    found = []
    for row in rows:
        cells = {task: row.cells.get(task, {}).get(metric) for task in tasks}
        values = {task: cell.value for task, cell in cells.items() if cell is not None and cell.value is not None}
        if values:
            found.append(Standing(row, values, len(tasks)))
    if not found:
        return [], []
    most = max(tasks, key=lambda task: sum(task in one.values for one in found))
    ranked = [one for one in found if most in one.values]
    common = [task for task in tasks if all(task in one.values for one in ranked)]
    for one in ranked:
        one.mean = sum(one.values[task] for task in common) / len(common)
        one.interval = mean_interval(one.row, common, metric)
    found.sort(key=lambda one: (-(one.mean if one.mean is not None else -1), one.row.name))
    means = [one.mean for one in found if one.mean is not None]
    for one in found:
        one.rank = None if one.mean is None else 1 + sum(mean > one.mean for mean in means)
    return found, common


def mean_interval(row: Row, tasks: Sequence[str], metric: str) -> tuple[float, float] | None:
    """95% interval of a mean over tasks: each task's own half-widths, as independent errors, in quadrature."""
    if not all(task in row.stored for task in tasks):
        return None
    each = [task_interval(row.stored[task], metric) for task in tasks]
    if None in each:
        return None
    means = [row.stored[task].metrics[metric] for task in tasks]
    if len(tasks) == 1:
        return each[0]
    down = math.sqrt(sum((mean - low) ** 2 for mean, (low, _) in zip(means, each, strict=True))) / len(tasks)
    up = math.sqrt(sum((high - mean) ** 2 for mean, (_, high) in zip(means, each, strict=True))) / len(tasks)
    return sum(means) / len(means) - down, sum(means) / len(means) + up


def task_interval(stored: Stored, metric: str) -> tuple[float, float] | None:
    """The interval that evaluation wrote, else the same bootstrap over the per-query rows; None where neither is."""
    if metric in stored.koir["intervals"]:
        low, high = stored.koir["intervals"][metric]
        return low, high
    return _bootstrap(_key(stored), metric)


@functools.lru_cache(maxsize=8192)
def _bootstrap(key: tuple, metric: str) -> tuple[float, float] | None:
    found = _values(key)
    if isinstance(found, ResultError) or metric not in found[1]:
        return None
    return interval(found[2][:, found[1].index(metric)])


def values_of(stored: Stored, metric: str) -> dict[str, float]:
    """query id -> value. Raises ResultError where the per-query rows are missing or broken; empty for F1."""
    found = _values(_key(stored))
    if isinstance(found, ResultError):
        raise found
    ids, names, matrix = found
    return dict(zip(ids, matrix[:, names.index(metric)].tolist(), strict=True)) if metric in names else {}


class _Key(tuple):
    """A file's path, size and time, with the result itself along for the reading."""

    stored: Stored


def _key(stored: Stored) -> tuple:
    try:
        state = stored.queries_file.stat()
        key = _Key((str(stored.queries_file), state.st_size, state.st_mtime_ns))
    except OSError:
        key = _Key((str(stored.queries_file), 0, 0))
    key.stored = stored
    return key


@functools.lru_cache(maxsize=4096)
def _values(key: _Key) -> tuple[list[str], list[str], np.ndarray] | ResultError:
    """Query ids in order, metric names, values [queries, metrics] of one result; or what is wrong with its rows."""
    try:
        scores = per_query(query_rows(key.stored))
    except ResultError as error:
        return error
    ids = list(scores)  # the task's order, as evaluation had it: random signs fall on the same queries
    names = list(next(iter(scores.values())))
    return ids, names, np.array([[scores[query][name] for name in names] for query in ids])


def mark_ties(found: Sequence[Standing], common: Sequence[str], metric: str) -> None:
    """Set rank, tied and tested: two rows with per-query values are tied where a paired test cannot tell them apart.

    The test is over all queries of the common tasks, each task with the same weight. A rank is 1 + the number of rows
    that are better: significantly so where both have per-query values, by their means where one has not. It never falls
    from a row to the next: a noisy row that nothing above is significantly better than would else be first.
    """
    places, vectors = _vectors(found, common, metric)
    same = {place: set() for place in range(len(found))}
    for number, one in enumerate(places):
        found[one].tested = True
        for other in (places[later] for later in _indistinct(vectors, number)):
            same[one].add(other)
            same[other].add(one)
    above = 1
    for place, one in enumerate(found):
        if one.mean is not None:
            better = [other for other in range(place) if other not in same[place]]
            above = one.rank = max(above, 1 + len([other for other in better if found[other].mean > one.mean]))
            one.tied = [found[other].row.name for other in sorted(same[place])]


def unreadable(found: Sequence[Standing], common: Sequence[str]) -> list[ResultError]:
    """What is wrong with the per-query rows of the common tasks: such a row's ranks are not tested."""
    ranked = [one.row.stored for one in found if one.mean is not None]
    stored = [of_row[task] for of_row in ranked for task in common if task in of_row]
    return [error for one in stored if isinstance(error := _values(_key(one)), ResultError)]


def _vectors(found: Sequence[Standing], common: Sequence[str], metric: str) -> tuple[list[int], np.ndarray]:
    """Places of the rows that can be tested, and [rows, queries] whose sums are their means over the common tasks."""
    places, vectors, wanted = [], [], None
    for place, one in enumerate(found):
        parts, ids = [], []
        for task in common:
            stored = one.row.stored.get(task)
            values = _values(_key(stored)) if stored else None
            if values is None or isinstance(values, ResultError) or metric not in values[1]:
                break
            column = values[2][:, values[1].index(metric)]
            if wanted is not None:  # files may hold the same queries in another order
                places_of = {query: number for number, query in enumerate(values[0])}
                if places_of.keys() != set(wanted[len(ids)]):
                    break
                column = column[[places_of[query] for query in wanted[len(ids)]]]
            parts.append(column / (len(column) * len(common)))
            ids.append(values[0])
        if len(parts) < len(common):
            continue
        wanted = wanted or ids
        places.append(place)
        vectors.append(np.concatenate(parts))
    return places, np.array(vectors)


def _indistinct(vectors: np.ndarray, one: int) -> list[int]:
    """Rows after row `one` that a paired randomisation test does not tell from it."""
    differences = vectors[one + 1 :] - vectors[one]  # [rows after, queries]
    spread = np.sqrt((differences**2).sum(axis=1))
    z = np.divide(np.abs(differences.sum(axis=1)), spread, out=np.zeros(len(spread)), where=spread > 0)
    close = []
    largest = np.divide((differences**2).max(axis=1, initial=0), spread**2, out=np.ones(len(z)), where=spread > 0)
    few = ((differences != 0).sum(axis=1) < MANY) | (largest > 1 / MANY)
    for other, (value, exact) in enumerate(zip(z, few, strict=True), one + 1):
        p = math.erfc(value / math.sqrt(2))  # random signs have exactly this variance
        if exact or CLOSE[0] < p < CLOSE[1]:
            p = paired_p(vectors[one], vectors[other])
        if p >= SIGNIFICANT:
            close.append(other)
    return close


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points (cost, quality) that no other point beats in one and equals in the other, cheapest first."""
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
    front = []
    for place in order:
        if not front or points[place][1] > points[front[-1]][1] or points[place] == points[front[-1]]:
            front.append(place)
    return front
