"""Other people's numbers, each with its source: the tables of results/published/.

    {"name": "koe5", "title": {"en", "ko"}, "protocol": {"en", "ko"}, "comparable": true, "group": true,
     "tasks":   {"AutoRAGRetrieval": {"split": "test", "subset": "default", "queries": 114}},
     "sources": {"readme": {"title", "url", "date"}},
     "models": [{"name": "nlpai-lab/KoE5", "kind": "dense", "parameters": 560000000, "scores": {
         "AutoRAGRetrieval": {"source": "readme", "ndcg_at_1": 0.7017, "ndcg_at_3":
             {"value": 0.81985, "source": "kure", "printed": 0.4801, "note": {"en", "ko"}}}}}]}

A cell is a number, whose source is its block's, or an object that says more: its own source, a note, and the value as
it was printed where that one is wrong (value null: no right one is known). `file` in a block is a path below the
source's URL. comparable: whether the protocol is a pipeline's, every query against the whole corpus. group: whether
the board offers these tasks as a choice.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from koir.errors import ResultError

METRIC = re.compile(r"(ndcg|recall|precision|mrr|hit_rate|f1)_at_\d+")
NUMBER = (int, float)
KINDS = {str: "a text", dict: "an object", list: "a list", bool: "true or false", int: "a whole number"}
KINDS |= {NUMBER: "a number"}
# What is read of a table, of a text in both languages, of a task, a source and a model; of the last, what may lack.
TABLE = {"name": str, "title": dict, "protocol": dict, "comparable": bool, "tasks": dict, "sources": dict}
TABLE |= {"models": list}
BOTH = {"en": str, "ko": str}
TASK = {"split": str}
SOURCE = {"title": str, "url": str, "date": str}
MODEL = {"name": str, "kind": str, "scores": dict}
KNOWN = {"parameters": NUMBER, "depth": int, "pairs_per_second": dict}


@dataclass(frozen=True)
class Cell:
    """One published number. value: 0 to 1, None where none is right; note: by language; printed: a wrong original."""

    value: float | None
    source: str
    url: str
    note: dict[str, str] = field(default_factory=dict)
    printed: float | None = None


@dataclass(frozen=True)
class PublishedModel:
    """A row of a published table. cells: task -> metric -> Cell; parameters, depth, pairs_per_second where known."""

    name: str
    kind: str
    cells: dict[str, dict[str, Cell]]
    parameters: int | None = None
    depth: int | None = None
    pairs_per_second: float | None = None


@dataclass(frozen=True)
class Published:
    """One file of results/published/. tasks: name -> {split, subset, queries}."""

    name: str
    title: dict[str, str]
    protocol: dict[str, str]
    tasks: dict[str, dict]
    models: list[PublishedModel]
    comparable: bool
    group: bool


def read_published(file: Path) -> Published:
    """One table. Raises ResultError with file and field for what is not as the module's text says."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # JSON lets half of a surrogate pair through
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(str(file), f"no readable JSON ({error})", "a published table") from None
    _check(str(file), content, TABLE)
    _check(str(file), content, {"group": bool} if "group" in content else {})
    for key in ("title", "protocol"):
        _check(f"{file}, {key}", content[key], BOTH)
    for key, kinds in (("tasks", TASK), ("sources", SOURCE)):
        for name, facts in content[key].items():
            _check(f"{file}, {key}, {name}", facts, kinds)
    models = [_model(file, content, model, place) for place, model in enumerate(content["models"], 1)]
    return Published(
        content["name"], content["title"], content["protocol"], content["tasks"], models,
        content["comparable"], content.get("group", True),
    )  # fmt: skip


def _check(place: str, said: object, kinds: dict) -> None:
    """Raise ResultError for the first of an object's fields that is missing or of another kind."""
    if not isinstance(said, dict):
        raise ResultError(place, _shown(said), f"an object with {', '.join(kinds)}")
    for key, kind in kinds.items():
        value = said.get(key)
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not right or (isinstance(value, NUMBER) and not 0 <= value < 1e300):
            raise ResultError(f"{place}, {key}", _shown(value), KINDS[kind])


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)[:80]


def _model(file: Path, content: dict, model: object, number: int) -> PublishedModel:
    _check(f"{file}, model {number}", model, MODEL)
    place = f"{file}, {model['name']}"
    _check(place, model, {key: kind for key, kind in KNOWN.items() if model.get(key) is not None})
    cells = {}
    for task, block in model["scores"].items():
        if task not in content["tasks"]:
            raise ResultError(f"{place}, {task}", "a task that the table does not list", "one of its tasks")
        _check(f"{place}, {task}", block, {"source": str} | ({"file": str} if "file" in block else {}))
        inherited = {"source": block["source"], "file": block.get("file", "")}
        metrics = {name: value for name, value in block.items() if name not in inherited}
        cells[task] = {
            name: _cell(f"{place}, {task}, {name}", content, value, inherited) for name, value in metrics.items()
        }
    speed = model.get("pairs_per_second")
    if speed is not None:
        _check(f"{place}, pairs_per_second", speed, {"value": NUMBER})
    return PublishedModel(
        model["name"], model["kind"], cells, model.get("parameters"), model.get("depth"), speed and speed["value"]
    )


def _cell(place: str, content: dict, value: object, inherited: dict) -> Cell:
    said = inherited | (value if isinstance(value, dict) else {"value": value})
    if isinstance(value, dict) and "source" in value:
        said = {"file": ""} | value
    if not METRIC.fullmatch(place.rpartition(", ")[2]):
        raise ResultError(place, "an unknown metric", "ndcg, recall, precision, mrr, hit_rate or f1, _at_k")
    _check(place, said, {"source": str, "file": str})
    if "note" in said:
        _check(f"{place}, note", said["note"], BOTH)
    number = said.get("value", "no value")
    if not (number is None and "note" in said) and not (type(number) in NUMBER and 0 <= number <= 1):
        raise ResultError(place, _shown(number), "a number from 0 to 1, or null with a note")
    if said["source"] not in content["sources"]:
        raise ResultError(place, f"the source {said['source']!r}", f"one of {', '.join(content['sources'])}")
    source = content["sources"][said["source"]]
    title = f"{source['title']} ({source['date']})"
    return Cell(number, title, source["url"] + said["file"], said.get("note", {}), said.get("printed"))
