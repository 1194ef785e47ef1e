"""KLUE: MRC question -> paragraph; NLI premise -> entailed hypothesis, contradicted ones as hard negatives; STS pairs
with a real-label of at least 4.0 of 5. Questions without an answer, neutral hypotheses and lesser pairs are dropped."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from koir.sources.mrc import questions
from koir.sources.pairs import inferences, similar
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally

WHERE, LICENCE = "https://github.com/KLUE-benchmark/KLUE (or klue/klue of the hub, as Parquet)", "CC BY-SA 4.0"
FILES = "klue-{task}-v1.1_train.json and _dev.json, or their tar.gz"
# Not mrc alone, which others' data has in its name.
FILE = r"(^|/)(klue-{0}[^/]*|{0}/(?:(?:train|validation|test)/)?[^/]*)\.(json|parquet)"
LABELS = ("entailment", "neutral", "contradiction")


def _inference(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    label = record["gold_label"] if "gold_label" in record else LABELS[record["label"]]
    yield {"premise": record["premise"], "hypothesis": record["hypothesis"], "label": label}


def _read_nli(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    return inferences(converted(path, tally, FILE.format("nli"), _inference), "klue-nli", tally)


def _similarity(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    score = record["labels"]["real-label"]
    yield from similar(record["sentence1"], record["sentence2"], score, place, tally, "klue-sts", record["guid"])


SOURCES = [
    Source(f"klue-{task}", "KLUE", what, WHERE, LICENCE, FILES.format(task=task), read)
    for task, what, read in (
        ("mrc", "KLUE-MRC: question -> paragraph",
         partial(converted, wanted=FILE.format("mrc"), convert=partial(questions, source="klue-mrc"))),
        ("nli", "KLUE-NLI: premise -> entailment, contradictions as hard negatives", _read_nli),
        ("sts", "KLUE-STS: pairs of at least 4.0 of 5",
         partial(converted, wanted=FILE.format("sts"), convert=_similarity)),
    )
]  # fmt: skip
