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

from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally

WHERE = "https://github.com/SKT-LSL/KoBEST_datarepo (or skt/kobest_v1 of the hub, as Parquet)"
FILES = r"(^|/|_){0}.*\.(tsv|parquet)|^(train|dev|test)[^/.]*\.tsv"
ASKED = {"원인": "원인은 무엇인가?", "결과": "결과는 무엇인가?"}
SENTIMENT = {"1": "긍정적인 상품평", "0": "부정적인 상품평"}


def _hub(record: dict) -> bool:
    """Whether a record comes from the hub's copy (skt/kobest_v1, Parquet), which has other names."""
    return "label" in record and "choice1" not in record


def _boolq(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    query, document = ("question", "paragraph") if _hub(record) else ("Question", "Text")
    yield {"query": record[query], "document": record[document], "source": "kobest-boolq"}


def _copa(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    if _hub(record):
        sentence, right = record["premise"], int(record["label"])
        alternatives = [record["alternative_1"], record["alternative_2"]]
    else:
        sentence, right = record["sentence"], ("1", "2").index(record["Answer"])
        alternatives = [record["1"], record["2"]]
    row = {"query": f"{sentence} {ASKED[record['question']]}", "document": alternatives[right]}
    yield row | {"hard_negative": alternatives[1 - right], "source": "kobest-copa"}


def _hellaswag(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    endings = [record[f"{'ending_' if _hub(record) else 'choice'}{i}"] for i in range(1, 5)]
    right = endings.pop(int(record["label"]))
    yield {"query": record["context"], "document": right, "hard_negative": endings, "source": "kobest-hellaswag"}


def _sentineg(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    if "Text_origin" not in record:
        tally.drop("a review without a negated twin", place)
        return
    row = {"query": SENTIMENT[record["Label"]], "document": record["Text"], "hard_negative": record["Text_origin"]}
    yield row | {"source": "kobest-sentineg"}


def _wic(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    hub = _hub(record)
    names = ("context_1", "context_2") if hub else ("SENTENCE1", "SENTENCE2")
    sentences = [record[name].replace("[", "").replace("]", "") for name in names]
    same = int(record["label"]) == 1 if hub else record["ANSWER"].upper() == "TRUE"
    yield {"word": record["word" if hub else "Target"], "sentences": sentences, "same": same}


def _read_wic(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    found = [*converted(path, tally, FILES.format("WiC"), _wic)]
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
        f"kobest-{task.lower()}", "KoBEST", what, WHERE, "CC BY-SA 4.0",
        f"{task}/{{train,dev,test}}.tsv, or the hub's Parquet",
        _read_wic if task == "WiC" else partial(converted, wanted=FILES.format(task), convert=convert),
    )
    for task, convert, what in (
        ("BoolQ", _boolq, "question -> paragraph"),
        ("COPA", _copa, "sentence -> its cause or result, the wrong one as hard negative"),
        ("HellaSwag", _hellaswag, "context -> what happens next, three wrong endings as hard negatives"),
        ("SentiNeg", _sentineg, "sentiment -> review, the negated review as hard negative (files with twins: test)"),
        ("WiC", _wic, "sentence -> sentence with the same word in the same sense"),
    )
]  # fmt: skip
