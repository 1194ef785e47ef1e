"""Exobrain (ETRI): reading comprehension, and short questions with evidence.

MRC: question -> paragraph. Short questions (단문질문, an Excel file; CSV is read too): question -> every evidence
sentence (columns that begin with 정답 근거, but for its number or page). Quiz sets (객관식, 주관식, 연상형) have no
passage: dropped and counted, as is a footer.
"""

import re
from collections.abc import Iterator
from functools import partial

from koir.sources.mrc import questions
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally

LICENCE = "ETRI terms: research use on application; not to be passed on"
WHERE = "https://aiopen.etri.re.kr (corpus download, ETRI QA Datasets)"


EVIDENCE = re.compile(r"정답\s*근거(?!.*(?:번호|위치|페이지|쪽|출처|ID|URL))", re.IGNORECASE)  # 정답 근거1(문장)


def _evidence(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    if any(name.startswith("질문(") for name in record):
        tally.drop("a quiz question without a passage", place)
        return
    if "질문" not in record:
        tally.drop("a line of a table without questions", place)
        return
    evidence = [text for name, text in record.items() if EVIDENCE.match(name) and text]
    if record["질문"] and evidence:
        yield {"query": record["질문"], "document": list(dict.fromkeys(evidence)), "source": "exobrain-evidence"}
    else:
        tally.drop("no question or no evidence", place)


SOURCES = [
    Source(
        "exobrain-mrc", "Exobrain", "ETRI MRC: question -> paragraph", WHERE, LICENCE, "etri_mrc/*.json",
        partial(converted, wanted=r"etri.*\.json|^[^/]*\.json", convert=partial(questions, source="exobrain-mrc")),
    ),
    Source(
        "exobrain-evidence", "Exobrain", "short questions: question -> evidence sentences", WHERE, LICENCE,
        "단문질문 QA dataset(...).xlsx; the quiz CSV files beside it give no rows",
        partial(converted, wanted=r"\.(xlsx|csv)", convert=_evidence),
    ),
]  # fmt: skip
