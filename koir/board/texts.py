"""The words behind ids: a task's queries and documents, where its folder is at hand."""

import functools
import json
import unicodedata

from koir.errors import UserError
from koir.evaluation.stored import Stored
from koir.evaluation.tasks import Task, load_task, place_of

SHOWN = 300  # characters of a document
LARGEST = 200_000_000  # bytes of corpus.jsonl; more would keep the reader waiting


def task_of(stored: Stored) -> Task | None:
    """The task that a result is of, found through the paths in the run.json beside it; None where it is not at hand."""
    try:
        facts = json.loads((stored.file.parent / "run.json").read_text(encoding="utf-8"))
        paths = [path for path in facts["tasks"] if isinstance(path, str)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        paths = []
    for path in dict.fromkeys([*paths, *(["demo"] if stored.task == "demo" else [])]):
        folder = place_of(path)
        named = "demo" if path == "demo" else unicodedata.normalize("NFC", folder.resolve().name)
        if named == stored.task and folder.is_dir():
            return _load(path, stored.split)
    return None


@functools.lru_cache(maxsize=4)
def _load(path: str, split: str) -> Task | None:
    if any(file.stat().st_size > LARGEST for file in place_of(path).glob("corpus.jsonl*")):
        return None
    try:
        return load_task(path, split)
    except UserError:
        return None


def query_text(task: Task | None, query: str) -> str:
    """A query's words, else its id."""
    return task.queries.get(query, query) if task else query


def document_text(task: Task | None, document: str) -> str:
    """The beginning of a document, else its id."""
    text = " ".join(task.corpus.get(document, document).split()) if task else document
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
