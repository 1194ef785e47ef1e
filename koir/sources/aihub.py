"""AIHUB: machine reading comprehension releases of aihub.or.kr.

A row is question -> paragraph. Questions of kinds 5 and 6 (yes/no, multiple choice) have a clue in place of a span:
it is checked instead. Unanswerable questions (flag, or file name in 89) and spans that do not match are dropped and
counted. Table paragraphs are HTML and become text. 150, 151 and 152 were not seen first-hand: a question without any
answer is taken there, one with an offset is checked. 152 has one document a file, each question in two wordings, both
taken, and free answers with clues, which say where a long paragraph is read.
"""

from collections.abc import Callable, Iterator
from functools import partial

from koir.sources.mrc import plain, questions
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally

LICENCE = "AIHUB terms: for registered users; neither the data nor rows made of it may be passed on"
NUMBERS = {  # data sets' pages
    "016": 569, "017": 577, "089": 89, "092": 92, "106": 106, "150": 71568, "151": 71610, "152": 71533, "71565": 71565,
}  # fmt: skip
# Every JSON but the vendor's source files, as 원천데이터/, [원천]도서.zip, TS1.zip, VS_도서.json and 메타데이터.zip.
LABELS = (
    r"^(?!.*(?:(?:원천|원시)\s*데이터|\[원천\]|(?:^|/)(?:원천|원시|메타데이터)[^/]*\.zip/|(?:^|[/\]])[TV]S\d*[_.\-/ ]))"
    r".*\.json"
)
MARKED = r"(?:^|[/\]])[TV]L_[^/]*(?:\.zip/.*)?\.json"  # TL_tableqa.json, [라벨]TL_tableqa_1.json, TL_tableqa.zip/a.json
NO_ANSWER = ("noanswer", "unanswerable")


def _entry(record: dict, place: str, tally: Tally, source: str, answered: bool) -> Iterator[dict]:
    parts = record.get("paragraphs") or [record]
    asked = [part.get("qas", part.get("qa_pairs")) for part in parts]
    if record.get("paragraphs") != [] and asked == [None] * len(parts) and not any("question" in p for p in parts):
        tally.drop("no questions (a source file?)", place)
    elif any(word in place.rpartition("/")[2].lower() for word in NO_ANSWER):
        for qas in asked:
            for qa in qas or [record]:
                tally.questions += 1
                tally.drop("unanswerable", f"{place}, question {qa.get('id')}")
    else:
        yield from questions(record, place, tally, source, answered)


def _technical(record: dict, place: str, tally: Tally, source: str, answered: bool) -> Iterator[dict]:
    """152's {"dataset": {"doc_id", "context_info": [{"context", "qas": [{"question-1", "question-2", "clue"}]}]}}."""
    if "dataset" not in record:
        yield from _entry(record, place, tally, source, answered)
        return
    if not record["dataset"]["context_info"]:
        tally.drop("no paragraph", place)
    for part in record["dataset"]["context_info"]:
        context, asked = plain(part["context"] or ""), []
        for qa in part["qas"]:
            clues = [plain(clue["clue_text"] or "") for clue in qa.get("clue") or []]
            there = [clue for clue in clues if clue and clue in context]
            wordings = [qa[name] for name in ("question-1", "question-2") if qa.get(name)] or [""]
            asked += [{"id": record["dataset"].get("doc_id"), "question": q, "answers": there} for q in wordings]
        yield from questions({"context": context, "qas": asked}, place, tally, source, answered)


def _source(
    name: str,
    number: str,
    title: str,
    wanted: str,
    files: str,
    pack: tuple[str, ...] = (),
    answered: bool = True,
    convert: Callable = _entry,
) -> Source:
    convert = partial(convert, source=f"aihub-{number}", answered=answered)
    read = partial(converted, wanted=wanted, convert=convert)
    page = f"/aihubdata/data/view.do?dataSetSn={NUMBERS[number]}" if number in NUMBERS else ""
    where = f"https://aihub.or.kr{page} (register, apply, download)"
    return Source(name, "AIHUB", f"{number} {title}: question -> paragraph", where, LICENCE, files, read, pack)


ADMIN = ("span_extraction.", "span_extraction_how.", "tableqa.", "text_entailment.", "multiple_choice.")
NEWS = ("span_extraction.", "span_inference.", "text_entailment.")
MRC = ("normal_squad", "clue0529_squad")
SOURCES = [
    _source(
        "aihub-admin-mrc", "016", "행정 문서 대상 기계독해", MARKED,
        "TL_*.json and VL_*.json (six kinds), in their zips or not", ADMIN,
    ),
    _source(
        "aihub-news-mrc", "017", "뉴스 기사 기계독해", MARKED,
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
        "aihub-tech-mrc", "152", "기술과학 문서 기계독해", LABELS, "02.라벨링데이터/*.zip of JSON", answered=False,
        convert=_technical,
    ),
    _source("aihub-table-qa", "71565", "표 정보 질의응답", LABELS, "라벨링데이터/*.zip of JSON, tables as HTML"),
]  # fmt: skip
