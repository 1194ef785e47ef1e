"""KoBEST, five tasks.

BoolQ: question -> its paragraph, whatever the answer. COPA: sentence and whether cause or result is asked -> the right
alternative, the other as hard negative. HellaSwag: context -> right ending, the other three as hard negatives.
SentiNeg: the sentiment -> the review, its negated twin as hard negative; files without twins (train, dev) give no rows.
WiC: sentence -> sentence with the same word in the same sense, those with another sense as hard negatives; pairs of
different sense alone give no rows.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from koir.sources.archives import walk
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally

WHERE = "https://github.com/SKT-LSL/KoBEST_datarepo"
ASKED = {"원인": "원인은 무엇인가?", "결과": "결과는 무엇인가?"}
SENTIMENT = {"1": "긍정적인 상품평", "0": "부정적인 상품평"}


def _boolq(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    yield {"query": record["Question"], "document": record["Text"], "source": "kobest-boolq"}


def _copa(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    right = record["Answer"]
    row = {"query": f"{record['sentence']} {ASKED[record['question']]}", "document": record[right]}
    yield row | {"hard_negative": record[{"1": "2", "2": "1"}[right]], "source": "kobest-copa"}


def _hellaswag(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    endings = [record[f"choice{i}"] for i in range(1, 5)]
    right = endings.pop(int(record["label"]))
    yield {"query": record["context"], "document": right, "hard_negative": endings, "source": "kobest-hellaswag"}


def _sentineg(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    if "Text_origin" not in record:
        tally.drop("a review without a negated twin", place)
        return
    row = {"query": SENTIMENT[record["Label"]], "document": record["Text"], "hard_negative": record["Text_origin"]}
    yield row | {"source": "kobest-sentineg"}


def _wic(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    sentences = [record[name].replace("[", "").replace("]", "") for name in ("SENTENCE1", "SENTENCE2")]
    yield {"word": record["Target"], "sentences": sentences, "same": record["ANSWER"].upper() == "TRUE"}


def _read(path: Path, tally: Tally, task: str) -> Iterator[tuple[dict, str]]:
    convert = {"BoolQ": _boolq, "COPA": _copa, "HellaSwag": _hellaswag, "SentiNeg": _sentineg}[task]
    return converted(walk(path), rf"(^|/|_){task}.*\.tsv|^(train|dev|test)[^/.]*\.tsv", convert, tally)


def _read_wic(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    found = [*converted(walk(path), r"(^|/|_)WiC.*\.tsv|^(train|dev|test)[^/.]*\.tsv", _wic, tally)]
    others: dict[tuple[str, str], list[str]] = {}
    for pair, _ in found:
        if not pair["same"]:
            first, second = pair["sentences"]
            others.setdefault((pair["word"], first), []).append(second)
            others.setdefault((pair["word"], second), []).append(first)
    for pair, place in found:
        first, second = pair["sentences"]
        if pair["same"]:
            negatives = [text for text in others.get((pair["word"], first), []) if text != second]
            yield {"query": first, "document": second, "hard_negative": negatives, "source": "kobest-wic"}, place
        else:
            tally.drop("another sense of the word", place)


SOURCES = [
    Source(
        f"kobest-{task.lower()}", "KoBEST", what, WHERE, "CC BY-SA 4.0", f"{task}/{{train,dev,test}}.tsv",
        _read_wic if task == "WiC" else partial(_read, task=task),
    )
    for task, what in (
        ("BoolQ", "question -> paragraph"),
        ("COPA", "sentence -> its cause or result, the wrong one as hard negative"),
        ("HellaSwag", "context -> what happens next, three wrong endings as hard negatives"),
        ("SentiNeg", "sentiment -> review, the negated review as hard negative (files with twins: test)"),
        ("WiC", "sentence -> sentence with the same word in the same sense"),
    )
]  # fmt: skip
