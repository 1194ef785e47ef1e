"""Raw releases become a folder of training rows: read, clean, mine, write in shards, each step resumable."""

import hashlib
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from koir.bars import progress_bar, seen
from koir.cleaning import Cleaner
from koir.corpus.negatives import Negatives
from koir.corpus.shards import Shape, read_rows, write_rows
from koir.errors import RunError
from koir.evaluation.tasks import load_splits, splits
from koir.manifest import DEMO, ROOT, cache_folder, model_key, write_json
from koir.mining import Rules, Statistics
from koir.retrieval.stages import first_stage
from koir.row_files import hub_revision
from koir.sources.archives import files_below, walk
from koir.sources.general import NAMED
from koir.sources.registry import Source, checked_rows
from koir.sources.tally import WINDOW, Tally
from koir.triplets import listed

SHARD = re.compile(r"train-\d{5}-of-\d{5}\.jsonl\.gz")
# What rows come from, besides their files: as they are read, and as they are written.
READING = ("sources", "triplets.py", "row_files.py", "evaluation/tasks.py")
CODE = (*READING, "cleaning.py", "duplicates.py", "mining.py", "retrieval", "corpus")


@dataclass
class Plan:
    """What goes into a folder of rows. inputs: (source, path), in the order in which rows are written."""

    inputs: list[tuple[Source, Path]]
    output_dir: Path
    splits: tuple[str, ...] = ("train", "dev", "test")
    window: int = WINDOW
    columns: dict[str, str] = field(default_factory=dict)  # what the user's own records call the fields of rows
    exclude_tasks: tuple[str, ...] = ()
    exclude_by: str = "both"
    cleaning: dict = field(default_factory=dict)  # keyword arguments of Cleaner
    shard_rows: int = 50_000
    negatives: str = "none"  # or a first stage
    rules: Rules = field(default_factory=Rules)  # which candidates become hard negatives
    depth: int = 100  # candidates a query
    seed: int = 0


@dataclass
class Part:
    """The rows of one source, checked, on disk. key: says what it was read from and how."""

    source: Source
    path: Path
    file: Path
    key: str
    facts: dict


def prepare(plan: Plan) -> dict | None:
    """Write plan.output_dir's shards; returns what is known of every step, or None where the folder was complete.

    A killed run is gone on with: sources that were read stay in the cache folder, keyed by the bytes they were read
    from; finished shards stay in the folder, which has a name for each only once all are known. Raises RunError for a
    folder that holds something else.
    """
    _check(plan)
    parts = [read_part(source, path, plan) for source, path in plan.inputs]
    key = _plan_key(plan, parts)
    folder = plan.output_dir
    if claim(folder, key):
        return None
    shape = _shape(parts, plan)
    cleaned = folder / ".cleaned"
    if not (cleaned / "done.json").is_file():
        _clean(parts, plan, shape, cleaned)
    counts = json.loads((cleaned / "done.json").read_text(encoding="utf-8"))
    facts = [
        {"source": part.source.name, "family": part.source.family, "path": str(part.path), "key": part.key}
        | {"licence": part.source.licence, "where": part.source.where, **part.facts}
        | {"dropped_in_cleaning": dropped, "kept": part.facts["rows"] - sum(dropped.values())}
        | {"negatives_left_out": left_out}
        for part, dropped, left_out in zip(parts, counts["dropped"], counts["negatives_left_out"], strict=True)
    ]
    statistics = _write_shards(plan, shape, cleaned, sum(fact["kept"] for fact in facts))
    done = {"key": key, "parts": facts, "shape": vars(shape), "cleaning": counts["counts"]}
    return done | {"mining": statistics.content() if plan.negatives != "none" else None}


def _check(plan: Plan) -> None:
    """Find out what cannot work before anything is read."""
    for task in plan.exclude_tasks:
        load_splits(task, _held_out(task) or ["test"])
    _cleaner(plan, ())
    if plan.negatives != "none":
        first_stage(plan.negatives, flag="--negatives")
    for source, path in plan.inputs:
        if source.name != "hub" and str(path) != "demo" and not path.exists():
            next(walk(path))


def _write_shards(plan: Plan, shape: Shape, cleaned: Path, count: int) -> Statistics:
    """The folder's shards, with mined negatives where the plan asks for them; those already there are left.

    count: rows of all shards.
    """
    shards, total, negatives = sorted(cleaned.glob("*.jsonl.gz")), Statistics(), None
    with progress_bar("mining" if plan.negatives != "none" else "writing", total=count, unit="row") as bar:
        for number, shard in enumerate(shards):
            target = plan.output_dir / f"train-{number:05}-of-{len(shards):05}.jsonl.gz"
            beside = cleaned / f"{number:05}.mined.json"
            if target.exists() and beside.exists():
                bar.update(min(plan.shard_rows, count - number * plan.shard_rows))
            else:
                statistics, rows = Statistics(), read_rows(shard)
                if plan.negatives != "none":
                    everything = (row for file in shards for row in read_rows(file))
                    negatives = negatives or Negatives(everything, plan.negatives, plan.rules, plan.depth)
                    rows = negatives.fill(rows, statistics)
                write_rows(target, map(shape, seen(rows, bar)))
                write_json(beside, vars(statistics))
            total.add(Statistics(**json.loads(beside.read_text(encoding="utf-8"))))
    return total


def finish(folder: Path, run: dict) -> None:
    """Write run.json, last, and remove what only a run under way needs."""
    shutil.rmtree(folder / ".cleaned", ignore_errors=True)
    for file in folder.glob(".*.partial"):  # of a process that was killed outright
        file.unlink()
    write_json(folder / "run.json", run)
    (folder / ".plan.json").unlink(missing_ok=True)


def claim(folder: Path, key: str) -> bool:
    """Make the folder this plan's own: empty, or begun by the same plan; True where it is complete already.

    What another plan left unfinished is removed. Raises RunError for a folder that holds anything else.
    """
    begun = folder / ".plan.json"
    if (folder / "run.json").is_file():
        if json.loads((folder / "run.json").read_text(encoding="utf-8")).get("key") == key:
            return True
        raise RunError(str(folder), "a complete folder of other rows", "a new --output_dir")
    if begun.is_file() and json.loads(begun.read_text(encoding="utf-8"))["key"] == key:
        return False
    left = [file for file in folder.glob("*") if SHARD.fullmatch(file.name)] if folder.is_dir() else []
    if folder.is_dir() and not begun.is_file() and any(folder.iterdir()):
        raise RunError(str(folder), "files of something else", "a new or empty --output_dir")
    for file in left:
        file.unlink()
    shutil.rmtree(folder / ".cleaned", ignore_errors=True)
    write_json(begun, {"key": key})
    return False


# --- reading ---------------------------------------------------------------------------------------------------------


def read_part(source: Source, path: Path, plan: Plan) -> Part:
    """The checked rows of one source, from the cache folder where the same bytes were read before."""
    code = content_key([ROOT / "koir" / name for name in READING])
    columns = plan.columns if source.name in NAMED else {}
    above = Path(os.path.abspath(path)).parent.parts[-2:]  # folders that may tell the split
    settings = f"{source.name} {plan.splits} {plan.window} {columns} {above} {code}"
    content = hub_revision(str(path), "--hub") if source.name == "hub" else content_key([path])
    key = hashlib.sha256(f"{settings} {content}".encode()).hexdigest()[:24]
    file = cache_folder() / "sources" / f"{source.name}-{key}.jsonl.gz"
    about = file.with_name(f"{file.name}.json")
    if not (file.is_file() and about.is_file()):
        tally = Tally(plan.splits, plan.window, columns)
        most = Counter()
        rows = progress_bar(f"reading {source.name}", checked_rows(source, path, tally), unit="row")
        write_rows(file, _counted(rows, most))
        write_json(about, {"rows": most.pop("rows"), "most": dict(most), **tally.content()})
    return Part(source, path, file, key, json.loads(about.read_text(encoding="utf-8")))


def _counted(rows: Iterable[dict], most: Counter) -> Iterator[dict]:
    """The rows, while counting them and the most texts of any list."""
    for row in rows:
        most["rows"] += 1
        for name in ("document", "hard_negative"):
            most[name] = max(most[name], len(listed(row.get(name))))
        most["scores"] |= "document_score" in row or "hard_negative_score" in row
        yield row


def content_key(paths: Iterable[Path]) -> str:
    """A hash over names and bytes of files and of folders' files."""
    key = hashlib.sha256()
    for path in paths:
        root = DEMO / "beir" if str(path) == "demo" else path
        for file in sorted(f for f in files_below(root) if "__pycache__" not in f.parts):
            key.update(str(file.relative_to(root.parent)).encode("utf-8", "surrogateescape"))
            with file.open("rb") as stream:
                key.update(hashlib.file_digest(stream, "sha256").digest())
    return key.hexdigest()


def _plan_key(plan: Plan, parts: list[Part]) -> str:
    told = [options(plan), [part.key for part in parts], content_key(ROOT / "koir" / name for name in CODE)]
    told += [content_key([Path(task)]) for task in plan.exclude_tasks]
    path = plan.negatives.partition(":")[2]
    told += [path and model_key(path)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def options(plan: Plan) -> dict:
    """What decides about the rows besides the inputs."""
    told = {name: value for name, value in vars(plan).items() if name not in ("inputs", "output_dir")}
    return told | {"rules": vars(plan.rules)}


def _shape(parts: list[Part], plan: Plan) -> Shape:
    """The shape that holds every row of the parts and what will be mined."""
    most = {name: max(part.facts["most"].get(name, 0) for part in parts) for name in ("document", "hard_negative")}
    mined = plan.rules.num_negatives if plan.negatives != "none" else 0
    scores = any(part.facts["most"].get("scores") for part in parts)
    return Shape(most["document"] > 1, max(most["hard_negative"], mined) > 1, bool(scores))


# --- cleaning --------------------------------------------------------------------------------------------------------


def _clean(parts: list[Part], plan: Plan, shape: Shape, folder: Path) -> None:
    """Write the kept rows of all parts in order to folder/00000.jsonl.gz and on, done.json last."""
    shutil.rmtree(folder, ignore_errors=True)
    cleaner = _cleaner(plan, [task for path in plan.exclude_tasks for task in excluded(path, plan.exclude_by)])
    dropped, left_out = [Counter() for _ in parts], [Counter() for _ in parts]

    def kept() -> Iterator[dict]:
        total = sum(part.facts["rows"] for part in parts)
        with progress_bar("cleaning", total=total, unit="row") as bar:
            for part, of_part, of_negatives in zip(parts, dropped, left_out, strict=True):
                for row in seen(read_rows(part.file), bar):
                    reason = cleaner.keep(row, of_negatives)
                    if reason is None:
                        yield row
                    else:
                        of_part[reason] += 1

    rows, number = kept(), 0
    while (first := next(rows, None)) is not None:
        block = itertools.chain([first], itertools.islice(rows, plan.shard_rows - 1))
        write_rows(folder / f"{number:05}.jsonl.gz", map(shape, block))
        number += 1
    if not number:
        by_documents = bool(plan.exclude_tasks) and plan.exclude_by == "both"
        gentler = "gentler bounds" + ", or --exclude_by queries" * by_documents
        raise RunError(str(plan.output_dir), f"no row left after cleaning ({dict(cleaner.counts)})", gentler)
    done = {"counts": dict(cleaner.counts), "dropped": dropped, "negatives_left_out": left_out}
    write_json(folder / "done.json", done)


def _cleaner(plan: Plan, exclude: Iterable) -> Cleaner:
    return Cleaner(exclude=exclude, seed=plan.seed, **plan.cleaning)


def excluded(path: str, by: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(name, queries, documents) of each split of a task but train; documents: the right ones, none by "queries".

    A right one is there twice, the second time without its first line: a title, which rows of the same text may lack.
    """
    for task in load_splits(path, _held_out(path)):
        right = {document for answers in task.qrels.values() for document in answers}
        documents = [task.corpus[document] for document in sorted(right)] if by == "both" else []
        untitled = [text.partition("\n")[2] for text in documents]
        yield f"{task.name}/{task.split}", list(task.queries.values()), documents + list(filter(None, untitled))


def _held_out(path: str) -> list[str]:
    return [split for split in splits(path) if split != "train"]
