"""Short Korean questions: ChatbotData question -> answer; Question_pair and ParaKQC question -> paraphrase.

Question_pair marks pairs of the same meaning with 0: those are rows, the rest is dropped and counted. ParaKQC has ten
paraphrases in a row: the first -> the other nine, as right documents of one row.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from koir.errors import SourceError
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally

GROUP = 10  # ParaKQC's paraphrases of one meaning


def _answer(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    yield {"query": record["Q"], "document": record["A"], "source": "chatbot"}


def _same(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    if record["is_duplicate"] != "0":
        tally.drop("questions of different meaning", place)
        return
    yield {"query": record["question1"], "document": record["question2"], "source": "question-pair"}


def _sentence(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    yield {"kind": (record["0"], record["1"]), "text": record["2"]}


def _read_parakqc(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    group: list[dict] = []
    place = str(path)
    for sentence, place in converted(path, tally, r"paraKQC[^/]*\.(txt|tsv)", _sentence, header=False):
        group.append(sentence)
        if len(group) < GROUP:
            continue
        if len({sentence["kind"] for sentence in group}) > 1:
            raise SourceError(place, "ten lines of different topic or speech act", "ten paraphrases in a row")
        first, *others = dict.fromkeys(sentence["text"] for sentence in group)
        yield {"query": first, "document": others, "source": "parakqc"}, place
        group = []
    if group:
        raise SourceError(place, f"{len(group)} lines left over", "a multiple of ten lines")


SOURCES = [
    Source(
        "chatbot", "Chat", "ChatbotData: question -> answer", "https://github.com/songys/Chatbot_data", "MIT",
        "ChatbotData.csv", partial(converted, wanted=r"Chatbot_?data[^/]*\.csv", convert=_answer),
    ),
    Source(
        "question-pair", "Chat", "Question_pair: question -> question of the same meaning",
        "https://github.com/songys/Question_pair", "MIT", "kor_pair_train.csv, kor_Pair_test.csv",
        partial(converted, wanted=r"kor_pair[^/]*\.csv", convert=_same),
    ),
    Source(
        "parakqc", "Chat", "ParaKQC: question or command -> nine paraphrases", "https://github.com/warnikchow/paraKQC",
        "CC BY-SA 4.0", "paraKQC_v1.txt", _read_parakqc,
    ),
]  # fmt: skip
