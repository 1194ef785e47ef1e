"""Mine hard negatives for training rows: a first stage finds passages near the query, rules leave out right answers.

    python scripts/mine_negatives.py --train_data rows.jsonl.gz --first_stage bm25 --output_dir outputs/mined
    python scripts/mine_negatives.py --train_data rows.jsonl.gz --first_stage dense:outputs/v1.1-demo
        --reranker outputs/reranker-demo --num_negatives 4 --output_dir outputs/mined-2

Writes part-NNNNN.jsonl.gz (rows; give them to --train_data), report.json and, last, run.json. The same command again
goes on after the last whole part. With --reranker its raw logits judge the candidates, and are written as
document_score and hard_negative_score.
"""

import gzip
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

try:
    from koir.arguments import parse
except ModuleNotFoundError as missing:
    if missing.name != "koir":
        sys.exit(f"error: {missing.name} is not installed here; run: bash scripts/setup.sh")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from koir.arguments import parse

from tqdm import tqdm

from koir.errors import FlagError, RowError, RunError, exit_on_user_error
from koir.manifest import origin, write_json, written_aside
from koir.mining import Answers, Query, Rules, Statistics, mine
from koir.retrieval.stages import corpus_fingerprint, first_stage
from koir.triplets import Triplets, load_triplets, report, text_hash

MARGIN = 1.0  # logits: the positive is e times likelier by the reranker's odds


@dataclass
class MiningArguments:
    """What is mined for, from where, and what may become a hard negative."""

    train_data: list[str] = field(default_factory=lambda: ["demo"], metadata={"help": "files of rows, hub names, demo"})
    first_stage: str = field(default="bm25", metadata={"help": "bm25, dense:PATH or hybrid:PATH"})
    reranker: str | None = field(
        default=None, metadata={"help": "PATH: judge candidates by its logits, and write them; default: none"}
    )
    output_dir: str = field(default="outputs/mined", metadata={"help": "a new folder, or one to go on with"})
    corpus: list[str] = field(
        default_factory=list,
        metadata={"help": "passages beside the rows' documents: BEIR folders, or .jsonl[.gz] of {_id, text}"},
    )
    depth: int = field(default=100, metadata={"help": "candidates taken from the first stage for a query"})
    skip_top: int = field(default=0, metadata={"help": "best candidates passed over, right answers not counted"})
    num_negatives: int = field(default=1, metadata={"help": "hard negatives a row, at most"})
    max_ratio: float | None = field(
        default=None, metadata={"help": "a candidate above this share of the positive's score is left out; default: 0.95"}
    )
    margin: float | None = field(
        default=None,
        metadata={"help": f"instead: candidates score so much below the positive; default: {MARGIN} with --reranker"},
    )
    sampling: str = field(default="top", metadata={"choices": ["top", "random"], "help": "top, or random among those left"})
    near_duplicate_threshold: float = field(
        default=0.8, metadata={"help": "share of common character 3-grams that makes a passage equal a right answer"}
    )
    given: str = field(
        default="replace",
        metadata={"choices": ["replace", "add", "keep"], "help": "rows' own hard negatives; keep: mine for rows without"},
    )
    rows_per_part: int = field(default=10_000, metadata={"help": "rows in one file of the output"})
    seed: int = field(default=0, metadata={"help": "of --sampling random"})
    json: str | None = field(default=None, metadata={"help": "also write the report to this file"})

    def rules(self) -> Rules:
        """The flags as rules; FlagError where they contradict each other."""
        if self.max_ratio is not None and (self.margin is not None or self.reranker):
            raise FlagError("--max_ratio", "--margin or --reranker beside it (logits can be negative)", "one rule")
        for name in ("depth", "rows_per_part"):
            if getattr(self, name) < 1:
                raise FlagError(f"--{name}", str(getattr(self, name)), "1 or more")
        margin = MARGIN if self.reranker and self.margin is None else self.margin
        ratio = 0.95 if self.max_ratio is None else self.max_ratio
        return Rules(self.num_negatives, self.skip_top, ratio, margin, self.sampling,
                     self.near_duplicate_threshold, self.seed)  # fmt: skip


@dataclass
class Corpus:
    """texts: passages by id (a hash of the text, so each once). answers: right answers by query, as ids."""

    texts: dict[str, str]
    answers: Answers


def passage_id(number: int) -> str:
    """A text's hash as a corpus id."""
    return f"{number & 0xFFFFFFFFFFFFFFFF:016x}"


def rows_of(triplets: Triplets, start: int = 0, stop: int | None = None) -> Iterator[dict]:
    """The rows that the pairs were made of: documents of one row beside each other again."""
    pairs = (pair for batch in triplets.pairs.iter(1000) for pair in _records(batch))
    together = itertools.groupby(pairs, lambda pair: (pair["query"], pair["right_answers"], pair["hard_negatives"]))
    for _, of_row in itertools.islice(together, start, stop):
        of_row = list(of_row)
        yield of_row[0] | {"documents": [pair["document"] for pair in of_row]}


def _records(batch: dict) -> Iterator[dict]:
    return (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def read_corpus(triplets: Triplets, paths: list[str]) -> tuple[Corpus, int]:
    """All documents of the rows and all passages of `paths`; the number of rows."""
    corpus, count = Corpus({}, Answers()), 0
    for count, row in enumerate(rows_of(triplets), 1):  # noqa: B007
        corpus.texts.update((passage_id(text_hash(text)), text) for text in row["documents"])
        corpus.answers.add(row["query"], map(passage_id, row["right_answers"]))
    for path in paths:
        for text in passages(Path(path)):
            corpus.texts.setdefault(passage_id(text_hash(text)), text)
    return corpus, count


def passages(path: Path) -> Iterator[str]:
    """Texts of a BEIR folder's corpus, or of a file of {_id, text, title}: title and text joined."""
    files = [path / "corpus.jsonl", path / "corpus.jsonl.gz"] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise RowError(f"--corpus {path}", "no such file, or no corpus.jsonl[.gz] in it", "a BEIR folder or .jsonl[.gz]")
    with gzip.open(file, "rt", encoding="utf-8-sig") if file.suffix == ".gz" else file.open(encoding="utf-8-sig") as s:
        for number, line in enumerate(s, 1):
            yield line
