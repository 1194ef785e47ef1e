"""AIHUB: machine reading comprehension releases of aihub.or.kr.

A row is question -> paragraph. Questions of kinds 5 and 6 (yes/no, multiple choice) have a clue in place of a span:
it is checked instead. Unanswerable questions (flag, or file name in 89) and spans that do not match are dropped and
counted. Table paragraphs are HTML and become text. 150, 151 and 152 were not seen first-hand: a question without any
answer is taken there, with an answer it is checked.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from koir.sources.archives import walk
from koir.sources.mrc import questions
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally

LICENCE = "AIHUB terms: for registered users; neither the data nor rows made of it may be passed on"
NUMBERS = {"016": 569, "017": 577, "089": 89, "092": 92, "106": 106, "150": 71568, "71565": 71565}  # data sets' pages
LABELS = r"^(?!.*(?:원천데이터|(?:^|/)[TV]S_)).*\.json"  # every JSON but the vendor's source files


def _entry(record: dict, place: str, tally: Tally, source: str, answered: bool) -> Iterator[dict]:
    if "noanswer" in place.rpartition("/")[2].lower():
        for paragraph in record["paragraphs"]:
            for qa in paragraph["qas"]:
                tally.drop("unanswerable", f"{place}, question {qa.get('id')}")
        return
    yield from questions(record, place, tally, source, answered)


def _source(
    name: str, number: str, title: str, wanted: str, files: str, pack: tuple[str, ...] = (), answered: bool = True
) -> Source:
    convert = partial(_entry, source=f"aihub-{number}", answered=answered)

    def read(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
        return converted(walk(path), wanted, convert, tally)

    page = f"/aihubdata/data/view.do?dataSetSn={NUMBERS[number]}" if number in NUMBERS else ""
    where = f"https://aihub.or.kr{page} (register, apply, download)"
    return Source(name, "AIHUB", f"{number} {title}: question -> paragraph", where, LICENCE, files, read, pack)


ADMIN = ("span_extraction.", "span_extraction_how.", "tableqa.", "text_entailment.", "multiple_choice.")
NEWS = ("span_extraction.", "span_inference.", "text_entailment.")
MRC = ("normal_squad", "clue0529_squad")
SOURCES = [
    _source(
        "aihub-admin-mrc", "016", "행정 문서 대상 기계독해", r"(^|/)[TV]L_[a-z_]+\.json",
        "TL_*.json and VL_*.json (six kinds), in their zips or not", ADMIN,
    ),
    _source(
        "aihub-news-mrc", "017", "뉴스 기사 기계독해", r"(^|/)[TV]L_[a-z_]+\.json",
        "TL_*.json and VL_*.json (four kinds), in their zips or not", NEWS,
    ),
    _source("aihub-mrc", "089", "기계독해", r"(^|/)ko_nia_[^/]+\.json", "ko_nia_*_squad_all.json, in zips or not", MRC),
    _source("aihub-book-mrc", "092", "도서자료 기계독해", LABELS, "라벨링데이터/**.zip or 도서*.json"),
    _source("aihub-commonsense", "106", "일반상식", r"(^|/)ko_wiki[^/]*\.json", "ko_wiki_v1_squad.json"),
    _source(
        "aihub-number-mrc", "150", "숫자연산 기계독해", LABELS, "02.라벨링데이터/*.zip of JSON", answered=False
    ),
    _source(
        "aihub-finance-law-mrc", "151", "금융, 법률 문서 기계독해", LABELS, "02.라벨링데이터/*.zip of JSON",
        answered=False,
    ),
    _source(
        "aihub-tech-mrc", "152", "기술과학 문서 기계독해", LABELS, "02.라벨링데이터/*.zip of JSON", answered=False
    ),
    _source("aihub-table-qa", "71565", "표 정보 질의응답", LABELS, "라벨링데이터/*.zip of JSON, tables as HTML"),
]  # fmt: skip
