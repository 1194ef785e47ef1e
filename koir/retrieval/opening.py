"""What an index says of itself, and the index opened by that: no corpus is needed, nothing is embedded.

`scripts/build_index.py` adds documents.jsonl and, last, run.json to the folder of a first stage's parts; `evaluate.py`
does so in a folder of each task, `<task>/`, since tasks may share an index folder.

    index = open_index("indexes/law")
    (found,) = index.search(["연차는 며칠?"], 10)   # id -> score, best first
"""

import contextlib
import json
import os
from pathlib import Path

from koir.encoder import Encoder
from koir.errors import RunError
from koir.manifest import origin, read_run, write_json, written_aside
from koir.retrieval.stages import FirstStage, corpus_fingerprint, first_stage, is_milvus, refuse_password

FACTS = {"first_stage": str, "fusion": str, "weight": float | int | None, "corpus_fingerprint": str}  # of an index


def refuse_others(folder: Path) -> None:
    """Raise RunError for a folder whose run.json or documents.jsonl is no index's: `describe` would replace them."""
    place = f"--index_uri {folder}"
    if (folder / "run.json").is_file():
        if (kind := read_run(folder).get("kind")) != "index":
            raise RunError(place, f"a folder with a run.json of kind {kind!r}", "a new folder, or an index's")
    elif (folder / "documents.jsonl").exists() and not any(folder.glob("*-" + 16 * "[0-9a-f]")):
        raise RunError(place, "a documents.jsonl that is no index's", "a new folder, or an index's")


def describe(folder: Path, stage: FirstStage, corpus: dict[str, str], **facts: object) -> None:
    """Write documents.jsonl and, last, run.json, by which `open_index` opens a stage's index over a corpus.

    folder: the stage's store, or a folder in it. facts: what else run.json is to say.
    """
    fingerprint = corpus_fingerprint(corpus)
    with contextlib.suppress(RunError):
        if read_run(folder).get("corpus_fingerprint") != fingerprint:
            (folder / "run.json").unlink()  # killed in between, documents.jsonl would be of another corpus than it says
    with written_aside(folder / "documents.jsonl") as aside, aside.open("w", encoding="utf-8") as out:
        for document, text in corpus.items():
            row = {"_id": document, "text": text.encode("utf-8", "ignore").decode()}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    said = {"kind": "index", "first_stage": stage.spec, "documents": len(corpus)}
    said |= {"fusion": stage.fusion, "weight": stage.weight if stage.fuses else None}
    said |= {"corpus_fingerprint": fingerprint, "fingerprint": stage.fingerprint}
    said["parts"] = os.path.relpath(stage.store, folder)
    write_json(folder / "run.json", said | facts | origin())


def index_folder(index_uri: str) -> Path:
    """Where run.json and documents.jsonl of an index folder are: in itself, or in the one folder of a task.

    Raises RunError where there is none, or more than one.
    """
    folder = Path(index_uri)
    if (folder / "run.json").is_file():
        return folder
    tasks = sorted(file.parent for file in folder.glob("*/run.json") if read_run(file.parent).get("kind") == "index")
    if not tasks:
        made = f"scripts/build_index.py or evaluate.py to have finished with --index_uri {index_uri}"
        raise RunError(f"--index_uri {index_uri}", "no run.json that says which corpus was indexed", made)
    if len(tasks) > 1:
        names = ", ".join(task.name for task in tasks)
        raise RunError(f"--index_uri {index_uri}", f"several corpora ({names})", f"one, as --index_uri {tasks[0]}")
    return tasks[0]


def described(index_uri: str, spec: str | None = None) -> dict:
    """What was said of an index: first_stage, fusion, weight, documents, corpus_fingerprint.

    spec: a first stage, where a Milvus may have indexes of several. Raises RunError where there is none.
    """
    refuse_password(index_uri)
    if is_milvus(index_uri):
        from koir.retrieval import milvus  # its client takes two seconds to import; most commands never need it

        return milvus.described(index_uri, spec)
    return read_run(index_folder(index_uri), **FACTS)


def open_index(
    index_uri: str,
    progress: bool = False,
    spec: str | None = None,
    fusion: str | None = None,
    weight: float | None = None,
    encoder: Encoder | None = None,
):
    """An index that was described; nothing is embedded again, and large arrays stay on disk.

    spec: a first stage all of whose parts are there; default: the one that was described. fusion, weight: chosen since.
    encoder: the first stage's, where it is loaded already. Raises RunError where there is none, or where the encoder's
    weights have changed since.
    """
    facts = described(index_uri, spec)
    if fusion is None:
        fusion, weight = facts["fusion"], facts["weight"]
    store = index_uri if is_milvus(index_uri) else str(index_folder(index_uri) / str(facts.get("parts", "")))
    stage = first_stage(spec or facts["first_stage"], store, progress, fusion, weight, encoder)
    if not stage.is_complete(facts["corpus_fingerprint"]):
        found = f"no index of {stage.spec} as it is now (an index of {facts['first_stage']}, or of other weights)"
        raise RunError(f"--index_uri {index_uri}", found, "scripts/build_index.py to have run with this model")
    return stage.open(facts["corpus_fingerprint"])
