"""Mine hard negatives for training rows: a first stage finds passages near the query, rules leave out right answers.

    python scripts/mine_negatives.py --train_data rows.jsonl.gz --first_stage bm25 --output_dir outputs/mined
    python scripts/mine_negatives.py --train_data rows.jsonl.gz --first_stage dense:outputs/v1.1-demo
        --reranker outputs/reranker-demo --num_negatives 4 --output_dir outputs/mined-2

Writes part-NNNNN.jsonl.gz (rows; give them to --train_data), report.json and, last, run.json. The same command again
goes on after the last whole part. With --reranker its raw logits judge the candidates, and are written as
document_score and hard_negative_score.
"""

import dataclasses
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
    sys.exit(f"error: {missing.name} is not installed here; run: bash scripts/setup.sh")

from tqdm import tqdm

from koir.errors import FlagError, RunError, exit_on_user_error
from koir.evaluation.tasks import load_corpus
from koir.manifest import model_folder, origin, write_json, written_aside
from koir.mining import Answers, Query, Rules, Statistics, mine
from koir.reranker import load_reranker
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


def rows_of(triplets: Triplets) -> Iterator[dict]:
    """The rows that the pairs were made of: documents of one row beside each other again."""
    pairs = (pair for batch in triplets.pairs.iter(1000) for pair in _records(batch))
    together = itertools.groupby(pairs, lambda pair: (pair["query"], pair["right_answers"], pair["hard_negatives"]))
    for _, of_row in together:
        of_row = list(of_row)
        yield of_row[0] | {"documents": [pair["document"] for pair in of_row]}


def _records(batch: dict) -> Iterator[dict]:
    return (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def gather_corpus(triplets: Triplets, paths: list[str]) -> tuple[Corpus, int]:
    """All documents of the rows and all passages of `paths`; the number of rows."""
    corpus, count = Corpus({}, Answers()), 0
    for row in rows_of(triplets):
        count += 1
        corpus.texts.update((passage_id(text_hash(text)), text) for text in row["documents"])
        corpus.answers.add(row["query"], map(passage_id, row["right_answers"]))
    for path in paths:
        for text in load_corpus(path).values():
            corpus.texts.setdefault(passage_id(text_hash(text)), text)
    return corpus, count


class Miner:
    """Rows in, rows with hard negatives out."""

    def __init__(self, arguments: MiningArguments, corpus: Corpus, index, reranker):
        self.rules, self.depth, self.given = arguments.rules(), arguments.depth, arguments.given
        self.corpus, self.index, self.reranker = corpus, index, reranker

    def part(self, rows: list[dict]) -> tuple[list[dict], Statistics]:
        """Some rows with their hard negatives, and what was done."""
        statistics = Statistics()
        asked = [row for row in rows if self.given != "keep" or not row["hard_negatives"]]
        statistics.counts["rows left as given"] = len(rows) - len(asked)
        queries = list(dict.fromkeys(row["query"] for row in asked))
        found = dict(zip(queries, self.index.search(queries, self.depth), strict=True))
        logits = self._logits(rows, found) if self.reranker else None
        mined = []
        for row in rows:
            negatives = [] if self.given == "replace" else list(row["hard_negatives"])
            if self.given != "keep" or not negatives:
                candidates = found[row["query"]]
                if logits is not None:
                    ids = dict.fromkeys([*candidates, *map(self._id, row["documents"])])
                    candidates = {i: logits[row["query"], self.corpus.texts[i]] for i in ids}
                negatives += self._negatives(row, candidates, negatives, statistics)
            mined.append(_written(row, negatives, logits))
        return mined, statistics

    def _negatives(self, row: dict, candidates: dict, given: list[str], statistics: Statistics) -> list[str]:
        positives = [self._id(text) for text in row["documents"]]
        query = Query(row["query"], positives, self.corpus.answers.of(row["query"]), given)
        chosen = mine(query, candidates, self.corpus.texts, self.rules, statistics)
        return [self.corpus.texts[document] for document in chosen]

    def _logits(self, rows: list[dict], found: dict[str, dict]) -> dict[tuple[str, str], float]:
        pairs = [(query, self.corpus.texts[document]) for query, run in found.items() for document in run]
        kept = () if self.given == "replace" else ("hard_negatives",)
        pairs += [(row["query"], text) for row in rows for name in ("documents", *kept) for text in row[name]]
        pairs = list(dict.fromkeys(pairs))
        scores = self.reranker.score(pairs, progress="pairs") if pairs else []
        return {pair: float(score) for pair, score in zip(pairs, scores, strict=True)}

    @staticmethod
    def _id(text: str) -> str:
        return passage_id(text_hash(text))


def _written(row: dict, negatives: list[str], logits: dict | None) -> dict:
    documents = row["documents"]
    written = {"query": row["query"], "document": documents if len(documents) > 1 else documents[0]}
    written["hard_negative"] = negatives or None
    if logits is not None:
        scores = [logits[row["query"], text] for text in documents]
        written["document_score"] = scores if len(documents) > 1 else scores[0]
        written["hard_negative_score"] = [logits[row["query"], text] for text in negatives] or None
    return written | {"source": row["source"]}


def write_part(file: Path, rows: list[dict], statistics: Statistics) -> None:
    """One file of rows, and beside it, last, what was done; both appear whole or not at all."""
    with written_aside(file) as aside, aside.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    write_json(statistics_file(file), vars(statistics))


def statistics_file(part: Path) -> Path:
    """Where a part's statistics lie; without them the part is not whole."""
    return part.with_name(part.name.replace(".jsonl.gz", ".json"))


def open_folder(folder: Path, plan: dict) -> None:
    """Begin an output folder, or go on with one of the same plan. Raises RunError where it holds anything else."""
    if (folder / "run.json").exists():
        raise RunError(f"--output_dir {folder}", "a complete run", "a new folder")
    file = folder / "plan.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        differing = [name for name in plan if before.get(name) != plan[name]]
        if differing:
            raise RunError(
                f"--output_dir {folder}", f"parts mined with other settings ({', '.join(differing)})", "a new folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"--output_dir {folder}", "files of something else", "a new folder")
    write_json(file, plan)


def weights_of(path: str | None) -> str | None:
    """Names, sizes and times of a model's files, so that parts of two models never meet."""
    if path is None or not Path(model_folder(path)).is_dir():
        return path
    files = sorted(file for file in Path(model_folder(path)).rglob("*") if file.is_file())
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def summary(statistics: Statistics) -> dict:
    """The report's content."""
    counts = statistics.counts
    return {"counts": dict(counts.most_common()), "scores": statistics.histogram()}


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
    stage = first_stage(arguments.first_stage)
    reranker = load_reranker(arguments.reranker) if arguments.reranker else None
    triplets = load_triplets(arguments.train_data)
    print(report(triplets.counts))
    corpus, count = gather_corpus(triplets, arguments.corpus)
    plan = {"rows": triplets.fingerprint, "corpus": corpus_fingerprint(corpus.texts), "first_stage": stage.fingerprint,
            "reranker": weights_of(arguments.reranker), "rules": dataclasses.asdict(rules), "given": arguments.given,
            "depth": arguments.depth, "rows_per_part": arguments.rows_per_part}  # fmt: skip
    open_folder(folder, plan)
    print(f"{count:,} rows, {len(corpus.texts):,} passages")
    miner = Miner(arguments, corpus, stage(corpus.texts), reranker)
    total, size = Statistics(), arguments.rows_per_part
    rows = rows_of(triplets)
    for start in tqdm(range(0, count, size), desc="parts", unit="part"):
        part = folder / f"part-{start // size:05d}.jsonl.gz"
        some = list(itertools.islice(rows, size))
        if not statistics_file(part).exists():
            write_part(part, *miner.part(some))
        total.add(Statistics(**json.loads(statistics_file(part).read_text(encoding="utf-8"))))
    content = summary(total)
    show(content)
    for file in [folder / "report.json", *([Path(arguments.json)] if arguments.json else [])]:
        write_json(file, content)
    facts = {"kind": "mining", "arguments": dataclasses.asdict(arguments), "plan": plan, "rows": count}
    write_json(folder / "run.json", facts | {"wall_seconds": time.perf_counter() - started} | origin())
    print(f"\nrows: {folder}/part-*.jsonl.gz, for --train_data")
    return content


if __name__ == "__main__":
    main()
