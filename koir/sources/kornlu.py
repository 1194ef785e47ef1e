"""KorNLI and KorSTS: premise -> entailment, contradictions as hard negatives; pairs of at least 4.0 of 5.

Both are tab-separated without quoting. KorNLI's machine-translated training files have lines with too few cells:
dropped and counted.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from koir.sources.pairs import inferences, similar
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally

WHERE, LICENCE = "https://github.com/kakaobrain/KorNLUDatasets", "CC BY-SA 4.0"


def _inference(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    yield {"premise": record["sentence1"], "hypothesis": record["sentence2"], "label": record["gold_label"]}


def _read_nli(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    return inferences(converted(path, tally, r"(nli|snli)[^/]*\.tsv", _inference), "kornli", tally)


def _similarity(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    yield from similar(record["sentence1"], record["sentence2"], float(record["score"]), place, tally, "korsts")


SOURCES = [
    Source(
        "kornli", "KorNLU", "KorNLI: premise -> entailment, contradictions as hard negatives", WHERE, LICENCE,
        "KorNLI/{multinli.train,snli_1.0_train,xnli.dev,xnli.test}.ko.tsv", _read_nli,
    ),
    Source(
        "korsts", "KorNLU", "KorSTS: pairs of at least 4.0 of 5", WHERE, LICENCE, "KorSTS/sts-{train,dev,test}.tsv",
        partial(converted, wanted=r"sts-[^/]*\.tsv", convert=_similarity),
    ),
]  # fmt: skip
