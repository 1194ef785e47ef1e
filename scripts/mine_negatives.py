"""Mine hard negatives for training rows: a first stage finds passages near the query, rules leave out right answers.

    .venv/bin/python scripts/mine_negatives.py --train_data rows.jsonl.gz --first_stage bm25 --output_dir outputs/mined
    .venv/bin/python scripts/mine_negatives.py --train_data rows.jsonl.gz --first_stage dense:outputs/RUN
        --reranker outputs/RERANKER --num_negatives 4 --output_dir outputs/mined-2

Writes part-NNNNN.jsonl.gz (rows; give them to --train_data), report.json and, last, run.json. The same command again
goes on after the last whole part; where all are there it only says so. With --reranker its raw logits judge the
candidates, and are written as document_score and hard_negative_score.
"""

import collections
import dataclasses
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.flags import parse  # first: koir says what is not installed

# isort: split
import torch

from koir.bars import progress_bar, seen
from koir.corpus.negatives import Negatives
from koir.corpus.shards import write_rows
from koir.errors import FlagError, RunError, exit_on_user_error
from koir.evaluation.tasks import load_corpus
from koir.manifest import check_outputs, model_key, origin, write_json
from koir.mining import Rules, Statistics
from koir.reranker import load_reranker
from koir.retrieval.stages import corpus_fingerprint
from koir.triplets import Triplets, load_triplets, report

MARGIN = 1.0  # logits: the positive is e times likelier by the reranker's odds


@dataclass
class MiningArguments:
    """What is mined for, from where, and what may become a hard negative."""

    train_data: list[str] = field(default_factory=lambda: ["demo"], metadata={"help": "files of rows, hub names, demo"})
    first_stage: str = field(default="bm25", metadata={"help": "bm25, dense:PATH, hybrid:PATH or milvus:PATH"})
    index_uri: str | None = field(
        default=None, metadata={"help": "folder that keeps the index, or a Milvus URI; default: the cache folder"}
    )
    reranker: str | None = field(
        default=None, metadata={"help": "none, or PATH: judge candidates by its logits, and write them; default: none"}
    )
    output_dir: str = field(default="outputs/mined", metadata={"help": "a new folder, or one to go on with"})
    corpus: list[str] = field(
        default_factory=list,
        metadata={"help": "passages beside the rows' documents: BEIR folders, or .jsonl[.gz] of {_id, text}"},
    )
    depth: int = field(default=100, metadata={"help": "candidates taken from the first stage for a query"})
    skip_top: int = field(default=0, metadata={"help": "best candidates passed over, right answers not counted"})
    num_negatives: int = field(default=1, metadata={"help": "mined hard negatives a row, at most"})
    max_ratio: float | None = field(
        default=None,
        metadata={"help": "a candidate above this share of the positive's score is left out; default: 0.95"},
    )
    margin: float | None = field(
        default=None,
        metadata={"help": f"instead: candidates score so much below the positive; default: {MARGIN} with --reranker"},
    )
    sampling: str = field(
        default="top", metadata={"choices": ["top", "random"], "help": "top, or random among those left"}
    )
    near_duplicate_threshold: float = field(
        default=0.8, metadata={"help": "share of common character 3-grams that makes a passage equal a right answer"}
    )
    given: str = field(
        default="replace",
        metadata={
            "choices": ["replace", "add", "keep"],
            "help": "rows' own hard negatives; keep: mine for rows without",
        },
    )
    rows_per_part: int = field(default=10_000, metadata={"help": "rows in one file of the output"})
    seed: int = field(default=0, metadata={"help": "of --sampling random"})
    json: str | None = field(default=None, metadata={"help": "also write the report to this file"})

    def __post_init__(self):
        """none is said as evaluate.py and serve.py have it said."""
        self.reranker = None if self.reranker == "none" else self.reranker

    def rules(self) -> Rules:
        """The flags as rules; FlagError where they contradict each other."""
        if self.max_ratio is not None and (self.margin is not None or self.reranker):
            raise FlagError("--max_ratio", "--margin or --reranker beside it (logits can be negative)", "one rule")
        for name in ("depth", "rows_per_part"):
            if getattr(self, name) < 1:
                raise FlagError(f"--{name}", str(getattr(self, name)), "1 or more")
        margin = MARGIN if self.reranker and self.margin is None else self.margin
        ratio = 0.95 if self.max_ratio is None else self.max_ratio
        rules = Rules(self.num_negatives, self.skip_top, ratio, margin, self.sampling,
                      self.near_duplicate_threshold, self.seed)  # fmt: skip
        rules.require_depth(self.depth)
        return rules


def rows_of(triplets: Triplets) -> Iterator[dict]:
    """The rows that the pairs were made of: documents of one row beside each other again."""
    pairs = (pair for batch in triplets.pairs.iter(1000) for pair in _records(batch))
    of_row: list[dict] = []
    for pair in pairs:
        if of_row and not _goes_on(of_row, pair):
            yield _row(of_row)
            of_row = []
        of_row.append(pair)
    if of_row:
        yield _row(of_row)


def _goes_on(of_row: list[dict], pair: dict) -> bool:
    """Whether a pair is one more document of the row so far; one that is there already begins another row."""
    same = all(pair[name] == of_row[0][name] for name in pair if name not in ("document", "document_score"))
    return same and len(pair["right_answers"]) > 1 and pair["document"] not in [other["document"] for other in of_row]


def _row(of_row: list[dict]) -> dict:
    row, several = of_row[0], len(of_row) > 1
    found = {"query": row["query"]}
    found["document"] = [pair["document"] for pair in of_row] if several else row["document"]
    found["hard_negative"] = row["hard_negatives"] or None
    if row["document_score"] is not None:
        scores = [pair["document_score"] for pair in of_row]
        found["document_score"] = scores if several else scores[0]
    if row["hard_negative_scores"] is not None:
        found["hard_negative_score"] = row["hard_negative_scores"]
    return found | {"source": row["source"]} | ({"id": row["id"]} if row["id"] is not None else {})


def _records(batch: dict) -> Iterator[dict]:
    return (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def statistics_file(part: Path) -> Path:
    """Where what was counted for a part lies; it is written last, and without it the part is not whole."""
    return part.with_name(part.name.replace(".jsonl.gz", ".json"))


def open_folder(folder: Path, plan: dict) -> bool:
    """Begin an output folder, or go on with one of the same plan; True where it is complete already.

    Raises RunError where it holds anything else.
    """
    file, complete = folder / "plan.json", (folder / "run.json").exists()
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        differing = [name for name in plan if before.get(name) != plan[name]]
        if differing:
            raise RunError(
                f"--output_dir {folder}", f"parts mined with other settings ({', '.join(differing)})", "a new folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"--output_dir {folder}", "files of something else", "a new folder")
    if not complete:
        write_json(file, plan)
    return complete


def show(content: dict) -> None:
    """The report for people: counts, and the histogram as bars."""
    for name, count in content["counts"].items():
        print(f"{count:>12,}  {name}")
    edges, positives, negatives = (content["scores"][name] for name in ("edges", "positives", "negatives"))
    most = max(1, *positives, *negatives)
    print(f"\n{'score from':>12}  {'right answers':<30}  hard negatives")
    for edge, right, wrong in zip(edges, positives, negatives, strict=False):
        print(f"{edge:>12.3f}  {'#' * round(30 * right / most):<30}  {'#' * round(30 * wrong / most)}")


@exit_on_user_error
def main(argv: list[str] | None = None) -> dict:
    """Mine, write rows and report; returns the report's content."""
    (arguments,) = parse([MiningArguments], argv, __doc__, recipes=False)
    rules, started, folder = arguments.rules(), time.perf_counter(), Path(arguments.output_dir)
    check_outputs(arguments.output_dir, arguments.json)
    reranker = load_reranker(arguments.reranker) if arguments.reranker else None
    if reranker and torch.cuda.is_available():
        reranker.to("cuda")
    triplets = load_triplets(arguments.train_data)
    print(report(triplets.counts))
    passages = (text for path in arguments.corpus for text in load_corpus(path).values())
    negatives = Negatives(rows_of(triplets), arguments.first_stage, rules, arguments.depth, arguments.given, passages,
                          reranker, arguments.index_uri)  # fmt: skip
    plan = {"rows": triplets.fingerprint, "corpus": corpus_fingerprint(negatives.texts),
            "first_stage": negatives.stage.fingerprint,
            "reranker": arguments.reranker and model_key(arguments.reranker),
            "rules": dataclasses.asdict(rules), "given": arguments.given, "depth": arguments.depth,
            "rows_per_part": arguments.rows_per_part}  # fmt: skip
    if open_folder(folder, plan):
        content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if arguments.json:
            write_json(Path(arguments.json), content)
        print(f"complete already: {folder}")
        return content
    own = [len(row["hard_negative"] or []) for row in rows_of(triplets)]
    count = len(own)
    if arguments.given == "replace" and any(own):
        print(f"note: the rows' own {sum(own):,} hard negatives are replaced; --given add or keep keeps them")
    empty = f", {negatives.empty:,} empty ones left out" if negatives.empty else ""
    print(f"{count:,} rows, {len(negatives.texts):,} passages{empty}")
    total, rows, size = Statistics(), rows_of(triplets), arguments.rows_per_part
    with progress_bar("mining", total=count, unit="row") as bar:
        for start in range(0, count, size):
            part, some = folder / f"part-{start // size:05d}.jsonl.gz", itertools.islice(rows, size)
            if statistics_file(part).exists():
                collections.deque(seen(some, bar), maxlen=0)  # passed over
            else:
                statistics = Statistics()
                write_rows(part, seen(negatives.fill(some, statistics), bar))
                write_json(statistics_file(part), vars(statistics))
            total.add(Statistics(**json.loads(statistics_file(part).read_text(encoding="utf-8"))))
    content = total.content()
    show(content)
    for file in [folder / "report.json", *([Path(arguments.json)] if arguments.json else [])]:
        write_json(file, content)
    facts = {"kind": "mining", "arguments": dataclasses.asdict(arguments), "plan": plan, "rows": count}
    write_json(folder / "run.json", facts | {"wall_seconds": time.perf_counter() - started} | origin())
    if not total.counts["chosen"]:
        print("\nWARNING: no hard negative was found: see the counts above for what left them out")
    print(f"\nrows: {shlex.quote(str(folder))}/part-*.jsonl.gz, for --train_data; a reranker takes them by "
          "--negatives_from rows")  # fmt: skip
    return content


if __name__ == "__main__":
    main()
