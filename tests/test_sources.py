"""Golden rows of every source, from tiny downloads in the official shape (our own text), and real counts."""

import csv
import gzip
import io
import json
import os
import re
import unicodedata
import zipfile
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koir.errors import FlagError, SourceError
from koir.sources import mrc
from koir.sources.mrc import excerpt, plain, questions
from koir.sources.records import records
from koir.sources.registry import KOE5, checked_rows, find, listing, sources
from koir.sources.streams import File
from koir.sources.tally import Tally, split_of

DATA = Path(os.environ.get("KOIR_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
BUS = "한빛시는 3월부터 무료 버스를 운행한다. 대상은 70세 이상 주민이다."
LAMP = "달맞이섬 등대는 1932년에 처음 불을 밝혔다. 높이는 18미터이다."


def at(context, text):
    return {"text": text, "answer_start": context.index(text)}


def squad(*entries):
    return {"data": [{"title": "제목", "paragraphs": [{"context": c, "qas": list(qas)}]} for c, *qas in entries]}


def mrc_row(source, number="q1"):
    return {"query": "대상은 누구인가?", "document": BUS, "source": source, "id": number}


RIGHT = {"id": "q1", "question": "대상은 누구인가?", "answers": [at(BUS, "70세 이상")]}
SHIFTED = {"id": "q2", "question": "언제부터인가?", "answers": [{"text": "3월", "answer_start": 1}]}
EMPTY = {"id": "q3", "question": "높이는?", "answers": []}
ADMIN = {
    "data": [
        {
            "doc_title": "버스",
            "paragraphs": [
                {
                    "context": BUS,
                    "qas": [
                        {"qa_type": 1, "question_id": "q1", "question": "대상은 누구인가?", "is_impossible": False,
                         "answers": at(BUS, "70세 이상") | {"clue_start": None, "clue_text": None}},
                        {"qa_type": 7, "question_id": "q2", "question": "전화번호는?", "is_impossible": True,
                         "answers": at(BUS, "3월")},
                        {"qa_type": 5, "question_id": "q3", "question": "무료인가요?", "is_impossible": False,
                         "answers": {"text": "Yes", "answer_start": None, "clue_start": 0,
                                     "clue_text": BUS.partition(".")[0]}},
                        {"qa_type": 6, "question_id": "q4", "question": "어긋난 단서는?", "is_impossible": False,
                         "answers": {"text": "가", "answer_start": None, "clue_start": 3, "clue_text": "한빛시는"}},
                    ],
                }
            ],
        }
    ]
}  # fmt: skip


def both(source):
    yes = {"query": "무료인가요?", "document": BUS, "source": source, "id": "q3"}
    return [mrc_row(source), yes]


TABLE = "<table><tr><td>구분</td><td>요금</td></tr><tr><td>어른</td><td>1,400원</td></tr></table>"
NEWS = {
    "id": "NWRW1800000001",
    "document": [
        {
            "id": "NWRW1800000001.1",
            "metadata": {"title": "달맞이섬 등대"},
            "paragraph": [
                {"id": "NWRW1800000001.1.1", "form": "달맞이섬 등대"},
                {"id": "NWRW1800000001.1.2", "form": LAMP},
                {"id": "NWRW1800000001.1.3", "form": "지금은 무인이다."},
            ],
        },
        {"id": "NWRW1800000001.2", "metadata": {"title": ""}, "paragraph": [{"id": "x.1", "form": BUS}]},
    ],
}
ARTICLE = f"{LAMP}\n지금은 무인이다."


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def tsv(*rows):
    return "".join("\t".join(row) + "\r\n" for row in rows)


def evidence_xlsx():
    book, stream = openpyxl.Workbook(), io.BytesIO()
    for row in (
        ["위키피디아 제목", "질문", "정답", "정답 근거1(문장)", "정답 근거2(문장)"],
        ["달맞이섬 등대", "등대의 높이는?", 18, "높이는 18미터이다.", "18미터 높이의 등대다."],
        ["합계 1,776", None, None, None, None],
    ):
        book.active.append(row)
    book.save(stream)
    return stream.getvalue()


NLI = [
    {"premise": "비가 온다.", "hypothesis": "날이 궂다.", "gold_label": "entailment"},
    {"premise": "비가 온다.", "hypothesis": "맑은 날이다.", "gold_label": "contradiction"},
    {"premise": "비가 온다.", "hypothesis": "우산을 샀다.", "gold_label": "neutral"},
    {"premise": "눈이 온다.", "hypothesis": "한여름이다.", "gold_label": "contradiction"},
]
NLI_TSV = tsv(["sentence1", "sentence2", "gold_label"], *[list(pair.values()) for pair in NLI], ["세 칸이", "아니다"])
NLI_ROW = {"query": "비가 온다.", "document": "날이 궂다.", "hard_negative": "맑은 날이다."}
NLI_DROPPED = {"neutral": 1, "a contradiction of a premise that entails nothing": 1}
WIC = [
    ["ID", "Target", "SENTENCE1", "SENTENCE2", "ANSWER"],
    ["1", "철", "[철]에 따라 피는 꽃.", "꽃이 [철]을 맞았다.", "TRUE"],
    ["2", "철", "[철]에 따라 피는 꽃.", "[철]로 만든 다리.", "False"],
]
PARAPHRASES = [f"{i}번째로 바꾸어 쓴 말" for i in range(10)]
STS = [["genre", "filename", "year", "id", "score", "sentence1", "sentence2"],
       ["a", "b", "c", "1", "4.0", '그는 "가자"고 했다.', "그가 가자고 말했다."],
       ["a", "b", "c", "2", "3.9", "개가 뛴다.", "고양이가 뛴다."],
       ["a", "b", "c", "3", "5.0", "같은 문장이다.", "같은 문장이다."]]  # fmt: skip
SHORT = {"the answer is not at its offset": 1, "no answer": 1}

# source: ({file: content}, rows, dropped)
GOLDEN = {
    "aihub-admin-mrc": (
        {"TL_span_extraction.json": ADMIN, "TS_span_extraction.json": {"data": []}},
        both("aihub-016"),
        {"unanswerable": 1, "the answer is not at its offset": 1},
    ),
    "aihub-news-mrc": (
        {"VL_span_inference.json": ADMIN},
        both("aihub-017"),
        {"unanswerable": 1, "the answer is not at its offset": 1},
    ),
    "aihub-mrc": (
        {
            "ko_nia_normal_squad_all.json": squad((BUS, RIGHT, SHIFTED)),
            "ko_nia_noanswer_squad_all.json": squad((BUS, RIGHT)),
        },
        [mrc_row("aihub-089")],
        {"the answer is not at its offset": 1, "unanswerable": 1},
    ),
    "aihub-book-mrc": ({"도서.json": squad((BUS, RIGHT | {"is_impossible": False}))}, [mrc_row("aihub-092")], {}),
    "aihub-commonsense": ({"ko_wiki_v1_squad.json": squad((BUS, RIGHT))}, [mrc_row("aihub-106")], {}),
    "aihub-number-mrc": (
        {"number.json": {"data": [{"passage": BUS, "qa_pairs": [{"id": "q1", "question": "대상은 누구인가?"}]}]}},
        [mrc_row("aihub-150")],
        {},
    ),
    "aihub-finance-law-mrc": (
        {"law.json": b"\xef\xbb\xbf" + json.dumps(squad((BUS, {"id": "q1", "question": "대상은 누구인가?"}))).encode()},
        [mrc_row("aihub-151")],
        {},
    ),
    "aihub-tech-mrc": ({"tech.json": squad((BUS, RIGHT, SHIFTED))}, [mrc_row("aihub-152")],
                       {"the answer is not at its offset": 1}),
    "aihub-table-qa": (
        {"table.json": {"data": [{"doc_title": "버스 요금", "paragraphs": [{"context": TABLE, "qas": [
            {"question_id": "1", "question": "어른 요금은?", "is_impossible": False,
             "answer": at(TABLE, "1,400원")}]}]}]}},
        [{"query": "어른 요금은?", "document": "구분 | 요금\n어른 | 1,400원", "source": "aihub-71565", "id": "1"}],
        {},
    ),
    "korquad": ({"KorQuAD_v1.0_train.json": squad((BUS, RIGHT, SHIFTED, EMPTY))}, [mrc_row("korquad-1.0")], SHORT),
    "korquad-2.1": (
        {"korquad2.1_train_00.json": {"data": [{"title": "등대", "context": f"<p>{LAMP}</p>" + TABLE, "qas": [
            {"id": "1", "question": "높이는?", "answer": at(f"<p>{LAMP}</p>", "18미터")},
            {"id": "2", "question": "어른은?", "answer": {"text": "1,400원", "answer_start": 3}}]}]}},
        [{"query": "높이는?", "document": f"{LAMP}\n구분 | 요금\n어른 | 1,400원", "source": "korquad-2.1", "id": "1"}],
        {"the answer is not at its offset": 1},
    ),
    "kommongen": (
        {"kommongen_train.json": lines({"concept-set": "시계 탑 빛난다", "scene": "시계가 탑에서 빛난다."})},
        [{"query": "시계 탑 빛난다", "document": "시계가 탑에서 빛난다.", "source": "kommongen"}],
        {},
    ),
    "exobrain-mrc": (
        {"etri_mrc/train.json": squad((BUS, {"id": "q1", "question": "대상은 누구인가?", "answers": [{"text": "70세"}]},
                                       {"id": "q2", "question": "어디인가?", "answers": [{"text": "부산"}]},
                                       {"id": "q3", "question": "몇 살인가?", "answers": "70세"}))},
        [mrc_row("exobrain-mrc"), mrc_row("exobrain-mrc") | {"id": "q3", "query": "몇 살인가?"}],
        {"the answer is not at its offset": 1},
    ),
    "exobrain-evidence": (
        {"단문질문 QA.xlsx": evidence_xlsx(),
         "객관식.csv": "질문(Q_string),보기()E_string,보기()E_string,정답(A_ans)\n해는?,1910년,1932년,1932년\n"},
        [{"query": "등대의 높이는?", "document": ["높이는 18미터이다.", "18미터 높이의 등대다."],
          "source": "exobrain-evidence"}],
        {"no question or no evidence": 1, "a quiz question without a passage": 1},
    ),
    "klue-mrc": (
        {"klue-mrc-v1.1_train.json": squad((BUS, RIGHT | {"guid": "klue-1"}, EMPTY | {"is_impossible": True,
                                            "plausible_answers": [at(BUS, "3월")]}))},
        [mrc_row("klue-mrc", "klue-1")],
        {"unanswerable": 1},
    ),
    "klue-nli": ({"klue-nli-v1.1_train.json": NLI}, [NLI_ROW | {"source": "klue-nli"}], NLI_DROPPED),
    "klue-sts": (
        {"klue-sts-v1.1_train.json": [
            {"guid": "s1", "sentence1": "방이 넓다.", "sentence2": "넓은 방이다.", "labels": {"real-label": 4.1}},
            {"guid": "s2", "sentence1": "방이 넓다.", "sentence2": "욕실이 넓다.", "labels": {"real-label": 3.9}}]},
        [{"query": "방이 넓다.", "document": "넓은 방이다.", "source": "klue-sts", "id": "s1"}],
        {"similarity below 4.0 of 5": 1},
    ),
    "kobest-boolq": (
        {"BoolQ/train.tsv": tsv(["ID", "Text", "Question", "Answer"], ["1", LAMP, "높이는 18미터인가?", "TRUE"])},
        [{"query": "높이는 18미터인가?", "document": LAMP, "source": "kobest-boolq"}],
        {},
    ),
    "kobest-copa": (
        {"COPA/dev.tsv": tsv(["ID", "sentence", "question", "1", "2", "Answer"],
                             ["1", "잔을 떨어뜨렸다.", "결과", "잔이 깨졌다.", "잔이 커졌다.", "1"],
                             ["2", "잔이 깨졌다.", "원인", "잔을 닦았다.", "잔을 떨어뜨렸다.", "2"])},
        [{"query": "잔을 떨어뜨렸다. 결과는 무엇인가?", "document": "잔이 깨졌다.", "hard_negative": "잔이 커졌다.",
          "source": "kobest-copa"},
         {"query": "잔이 깨졌다. 원인은 무엇인가?", "document": "잔을 떨어뜨렸다.", "hard_negative": "잔을 닦았다.",
          "source": "kobest-copa"}],
        {},
    ),
    "kobest-hellaswag": (
        {"HellaSwag/test.tsv": tsv(["context", "choice1", "choice2", "choice3", "choice4", "label"],
                                   ["공을 던진다.", "가", "나", "공이 날아간다.", "라", "2"])},
        [{"query": "공을 던진다.", "document": "공이 날아간다.", "hard_negative": ["가", "나", "라"],
          "source": "kobest-hellaswag"}],
        {},
    ),
    "kobest-sentineg": (
        {"SentiNeg/test.tsv": tsv(["ID", "Label_origin", "Text_origin", "Label", "Text", "Category_neg"],
                                  ["1", "0", "마음에 안 들어요", "1", "마음에 들어요", "1"]),
         "SentiNeg/train.tsv": tsv(["ID", "Text", "Label"], ["1", "좋아요", "1"])},
        [{"query": "긍정적인 상품평", "document": "마음에 들어요", "hard_negative": "마음에 안 들어요",
          "source": "kobest-sentineg"}],
        {"a review without a negated twin": 1},
    ),
    "kobest-wic": (
        {"WiC/train.tsv": tsv(*WIC)},
        [{"query": "철에 따라 피는 꽃.", "document": "꽃이 철을 맞았다.", "hard_negative": "철로 만든 다리.",
          "source": "kobest-wic"}],
        {"another sense of the word": 1},
    ),
    "nikl-newspaper": (
        {"NIKL_NEWSPAPER(v1.0)/NWRW1800000001.json": NEWS},
        [{"query": "달맞이섬 등대", "document": ARTICLE, "source": "nikl-newspaper", "id": "NWRW1800000001.1"}],
        {"no headline or no article": 1},
    ),
    "nikl-summarisation": (
        {"NEWSPAPER/NWRW1800000001.json": NEWS,
         "NIKL_SC.json": {"data": [
             {"document_id": "NWRW1800000001.1", "head": "등대", "summary_sentences": ["1932년의", "등대."]},
             {"document_id": "NWRW1900000001.1", "head": "없는 글", "summary_sentences": []}]}},
        [{"query": "등대", "document": ARTICLE, "source": "nikl-summarisation", "id": "NWRW1800000001.1-head"},
         {"query": "1932년의 등대.", "document": ARTICLE, "source": "nikl-summarisation",
          "id": "NWRW1800000001.1-summary"}],
        {"article not below this path": 1, "no summary": 1},
    ),
    "nikl-paraphrase": (
        {"NEWSPAPER/NWRW1800000001.json": NEWS,
         "NIKL_PC.json": {"data": [
             {"sentence_id": "NWRW1800000001.1.2.1", "paraphrases": [{"form": "등대는 1932년에 켜졌다."}]},
             {"sentence_id": "NWRW1900000001.1.2.1", "paraphrases": [{"form": "없는 글이다."}]}]}},
        [{"query": "등대는 1932년에 켜졌다.", "document": LAMP, "source": "nikl-paraphrase",
          "id": "NWRW1800000001.1.2.1-0"}],
        {"paragraph not below this path": 1},
    ),
    "kornli": (
        {"KorNLI/multinli.train.ko.tsv": NLI_TSV},
        [NLI_ROW | {"source": "kornli"}],
        {"a line with too many or too few cells": 1, **NLI_DROPPED},
    ),
    "korsts": (
        {"KorSTS/sts-train.tsv": tsv(*STS)},
        [{"query": '그는 "가자"고 했다.', "document": "그가 가자고 말했다.", "source": "korsts"}],
        {"similarity below 4.0 of 5": 1, "the query is its own document": 1},
    ),
    "chatbot": (
        {"ChatbotData.csv": 'Q,A,label\r\n"휴, 힘들다",쉬어 가요.,0\r\n'},
        [{"query": "휴, 힘들다", "document": "쉬어 가요.", "source": "chatbot"}],
        {},
    ),
    "question-pair": (
        {"kor_pair_train.csv": "\ufeffid,qid1,qid2,question1,question2,is_duplicate\r\n"
                               "1,1,2,1주년이야,만난 지 일 년,0\r\n2,3,4,1주년이야,노래 틀어줘,1\r\n"},
        [{"query": "1주년이야", "document": "만난 지 일 년", "source": "question-pair"}],
        {"questions of different meaning": 1},
    ),
    "parakqc": (
        {"paraKQC_v1.txt": tsv(*[["0", "1", text] for text in PARAPHRASES])},
        [{"query": PARAPHRASES[0], "document": PARAPHRASES[1:], "source": "parakqc"}],
        {},
    ),
    "squad": ({"mine.json": squad((BUS, RIGHT))}, [mrc_row("squad")], {}),
    "bge": (
        {"rows.jsonl": lines({"query": "버스", "pos": [BUS], "neg": [LAMP, "다른 글이다."]})},
        [{"query": "버스", "document": BUS, "hard_negative": [LAMP, "다른 글이다."], "source": "bge"}],
        {},
    ),
    "csv": (
        {"eval.csv": f"question,answer,doc_id,doc\n대상은?,70세 이상,7,{BUS}\n,없음,8,{LAMP}\n"},
        [{"query": "대상은?", "document": BUS, "source": "csv"}],
        {"field query: an empty text": 1},
    ),
    "triplets": (
        {"rows.jsonl": lines({"query": "버스", "document": BUS, "hard_negative": LAMP, "source": "나의 것", "id": 7}),
         "marco.tsv": tsv(["등대", LAMP, BUS])},
        [{"query": "버스", "document": BUS, "hard_negative": LAMP, "source": "나의 것", "id": "7"},
         {"query": "등대", "document": LAMP, "hard_negative": BUS, "source": "triplets"}],
        {},
    ),
    "beir": (
        {"corpus.jsonl": lines({"_id": "d", "title": "", "text": BUS}, {"_id": "e", "text": LAMP}),
         "queries.jsonl": lines({"_id": "q", "text": "대상은?"}),
         "qrels/train.tsv": "query-id\tcorpus-id\tscore\nq\td\t1\nq\te\t0\n"},
        [{"query": "대상은?", "document": BUS, "source": "download/train", "id": "q"}],
        {},
    ),
}  # fmt: skip


def write(folder, files):
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content, ensure_ascii=False, indent=1)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(name, path, **settings):
    tally = Tally(**settings)
    return list(checked_rows(find(name), path, tally)), tally


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows(name, tmp_path):
    files, rows, dropped = GOLDEN[name]
    found, tally = read(name, write(tmp_path / "download", files))
    assert found == rows
    assert dict(tally.dropped) == dropped
    assert all(tally.examples[reason] for reason in dropped)


def test_every_source_has_golden_rows_and_a_description():
    assert set(sources()) - {"hub"} == set(GOLDEN)
    text = listing()
    for source in sources().values():
        assert source.name in text and source.licence in text and source.where in text and source.files in text
    assert "723,428" in text and sum(KOE5.values()) == 723_428


def test_an_unknown_source_is_refused_with_the_nearest_name():
    with pytest.raises(FlagError, match="did you mean korquad"):
        find("korqad")


@pytest.mark.parametrize("name", [n for n in GOLDEN if n not in ("beir", "csv", "triplets", "exobrain-evidence")])
def test_a_wrong_folder_names_what_was_expected(name, tmp_path):
    write(tmp_path, {"사진.txt.bak": b"x", "읽어보기.md": b"x"})
    with pytest.raises(SourceError, match="nothing that it reads") as error:
        read(name, tmp_path)
    assert find(name).files in str(error.value)


def test_another_shape_under_the_right_name_names_file_and_row(tmp_path):
    write(tmp_path, {"klue-nli-v1.1_train.json": [NLI[0], {"premise": "비"}]})
    with pytest.raises(SourceError, match=r"klue-nli-v1.1_train.json, row 2: found no field 'label'"):
        read("klue-nli", tmp_path)


def test_no_rows_is_an_error_that_says_why(tmp_path):
    write(tmp_path, {"KorQuAD_v1.0_dev.json": squad((BUS, SHIFTED, EMPTY))})
    with pytest.raises(SourceError, match="the answer is not at its offset: 1, no answer: 1"):
        read("korquad", tmp_path)


def test_plain_documents_are_no_rows(tmp_path):
    with pytest.raises(SourceError, match=r"no rows \(a line without a tab between query and document: 2\); expected"):
        read("triplets", write(tmp_path, {"규정.txt": f"{BUS}\n{LAMP}\n"}))


def test_ids_headers_and_notes_among_lines_of_triplets_are_no_rows(tmp_path):
    """As MS MARCO's folder has them: only one of its files holds texts on both sides."""
    files = {
        "collection.tsv": tsv(["1234567", LAMP]),
        "queries.train.tsv": tsv(["3000001", "등대는 언제 켜졌나"]),
        "qrels.train.tsv": tsv(["3000001", "0", "1234567", "1"]),
        "triples.train.tsv": tsv(["query", "positive", "negative"], ["등대", LAMP, BUS], ["버스", BUS, "7654321"]),
        "README.txt": "어떻게 받았는가\n",
    }
    rows, tally = read("triplets", write(tmp_path, files))
    assert [(row["query"], row.get("hard_negative")) for row in rows] == [("등대", BUS), ("버스", None)]
    assert dict(tally.dropped) == {
        "an id, or another number, in place of a text": 3,
        "a header (csv=PATH reads tables that have one)": 1,
        "a line without a tab between query and document": 1,
    }


@pytest.mark.parametrize(
    "record",
    [
        {"anchor": "버스", "positive": BUS, "negative": LAMP},
        {"question": "버스", "answer": BUS, "negatives": [LAMP, BUS]},
        {"query": "버스", "pos": [BUS], "neg": [BUS, LAMP]},
    ],
)
def test_fields_under_other_names_and_negatives_that_are_documents(record, tmp_path):
    (row,), tally = read("triplets", write(tmp_path, {"rows.jsonl": lines(record) + "\x1a"}))
    assert (row["query"], row["document"], row["hard_negative"]) == ("버스", BUS, LAMP)
    left_out = {"hard negatives that were documents of their row": 1} if BUS in listed_of(record) else {}
    assert dict(tally.notes) == left_out


def listed_of(record):
    return record.get("neg") or record.get("negatives") or []


@pytest.mark.parametrize("negative", [5, 0.5, {"text": "다른 글"}])
def test_a_hard_negative_that_is_no_text_is_counted(negative, tmp_path):
    records_of = lines(
        {"query": "버스", "document": BUS, "hard_negative": negative}, {"query": "등대", "document": LAMP}
    )
    rows, tally = read("triplets", write(tmp_path, {"rows.jsonl": records_of}))
    assert len(rows) == sum(tally.dropped.values()) == 1


@pytest.mark.parametrize("title", [["2026년 사내 FAQ 목록"], ["FAQ", "", ""], ["제목"], []])
@pytest.mark.parametrize("kind", ["x.csv", "x.xlsx"])
def test_a_title_above_the_header_is_no_header(title, kind, tmp_path):
    rows_of = [title, [], ["질문", "답변", "비고"], ["등대는?", LAMP, ""], ["버스는?", BUS, ""]]
    if kind == "x.csv":
        content = "".join(",".join(row) + "\n" for row in rows_of)
    else:
        book, stream = openpyxl.Workbook(), io.BytesIO()
        for row in rows_of:
            book.active.append(row)
        book.save(stream)
        content = stream.getvalue()
    rows, tally = read("csv", write(tmp_path, {kind: content}))
    assert [row["document"] for row in rows] == [LAMP, BUS]
    assert tally.notes["title lines above the header"] == bool(title)


def test_a_table_of_one_column_has_no_title(tmp_path):
    with pytest.raises(SourceError, match="x.csv, row 1: found the columns 질문; expected one of document"):
        own(tmp_path, "csv", {"x.csv": "질문\n" + "등대는?\n" * 20})


def test_a_sheet_without_the_columns_is_passed_over_and_counted(tmp_path):
    cover, other = [["작성자", "홍길동"], ["날짜", "2026"]], [["제목", "비고"], ["등대", "확인"]]
    book = workbook(cover, [["질문", "답변"], ["높이는?", LAMP]])
    ((row,), tally) = read("csv", write(tmp_path / "one", {"x.xlsx": book}))
    assert row["document"] == LAMP and tally.dropped == {"in a sheet of the columns 작성자, 홍길동": 1}
    with pytest.raises(SourceError, match="no rows .in a sheet of the columns 작성자, 홍길동: 1, .* 제목, 비고: 1"):
        own(tmp_path, "csv", {"x.xlsx": workbook(cover, other)})


def test_a_list_of_texts_as_numpy_prints_it(tmp_path):
    table = f"query,document\n높이는?,\"['{BUS}' '{LAMP}']\"\n"
    assert own(tmp_path, "csv", {"x.csv": table})[0]["document"] == [BUS, LAMP]


def test_gzipped_workbooks_and_parquet(tmp_path):
    book = workbook([["질문", "답변"], ["높이는?", LAMP]])
    assert own(tmp_path / "a", "csv", {"x.xlsx.gz": gzip.compress(book)})[0]["document"] == LAMP
    stream = io.BytesIO()
    pq.write_table(pa.table({"query": ["높이는?"], "document": [LAMP]}), stream)
    assert own(tmp_path / "b", "triplets", {"x.parquet.gz": gzip.compress(stream.getvalue())})[0]["document"] == LAMP


def test_a_hard_negative_that_is_the_document_goes_with_its_score_in_any_form(tmp_path):
    row = {"query": "높이는?", "pos": [LAMP], "neg": [unicodedata.normalize("NFD", LAMP), BUS]}
    ((plain,), tally) = read("bge", write(tmp_path / "a", {"x.jsonl": lines(row)}))
    assert plain["hard_negative"] == BUS and sum(tally.notes.values()) == 1
    scored = row | {"pos_scores": [3.0], "neg_scores": [2.5, -1.0]}
    ((found,), _) = read("bge", write(tmp_path / "b", {"x.jsonl": lines(scored)}))
    assert (found["hard_negative"], found["hard_negative_score"]) == (BUS, -1.0)


def test_a_cell_with_a_list_of_texts(tmp_path):
    lists = ['"[""바다"", ""하늘""]"', "", '"[공지] 아니다"', "\"['바다', '하늘']\"", "[]", "nan"]
    queries = ["등대", '"[""등대"", ""버스""]"', "버스", "섬", "산", "강"]
    table = "".join(f"{query},{LAMP},{cell}\n" for query, cell in zip(queries, lists, strict=True))
    table = f"query,document,hard_negative\n{table}"
    rows, _ = read("csv", write(tmp_path, {"x.csv": table}))
    assert [row.get("hard_negative") for row in rows] == [
        ["바다", "하늘"], None, "[공지] 아니다", ["바다", "하늘"], None, None
    ]  # fmt: skip
    assert rows[1]["query"] == '["등대", "버스"]'


def test_a_missing_file_of_a_pack_is_noted(tmp_path):
    _, tally = read("aihub-admin-mrc", write(tmp_path, {"TL_span_extraction.json": ADMIN}))
    missing = ("span_extraction_how.", "tableqa.", "text_entailment.", "multiple_choice.")
    assert dict(tally.notes) == {f"not in this download: {ending}": 1 for ending in missing}


def test_names_in_capitals_mean_the_same(tmp_path):
    files, rows, dropped = GOLDEN["aihub-mrc"]
    found, tally = read("aihub-mrc", write(tmp_path, {name.upper(): content for name, content in files.items()}))
    assert (found, tally.dropped) == (rows, dropped)
    assert list(tally.notes) == ["not in this download: clue0529_squad"]


@pytest.mark.parametrize("name", ["BoolQ.zip", "KoBEST v1.0/BoolQ_1.0/train.zip"])
def test_a_kobest_task_in_an_archive_of_its_own(name, tmp_path):
    files, rows, _ = GOLDEN["kobest-boolq"]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("train.tsv", files["BoolQ/train.tsv"])
    assert read("kobest-boolq", write(tmp_path, {name: stream.getvalue()}))[0] == rows


def test_empty_paragraphs_and_questions_are_dropped(tmp_path):
    blank = RIGHT | {"question": " "}
    _, tally = read("korquad", write(tmp_path, {"KorQuAD_v1.0_dev.json": squad(("  ", RIGHT), (BUS, blank, RIGHT))}))
    assert dict(tally.dropped) == {"empty paragraph": 1, "empty question": 1}


def test_only_wanted_splits_are_read(tmp_path):
    files = {
        "KorQuAD_v1.0_dev.json": squad((BUS, RIGHT)),
        "KorQuAD_v1.0_train.json": squad((LAMP, RIGHT), (BUS, RIGHT)),
    }
    rows, tally = read("korquad", write(tmp_path, files), splits=("dev",))
    assert (len(rows), tally.left_out) == (1, ["KorQuAD_v1.0_train.json"])
    with pytest.raises(SourceError, match="other splits"):
        read("korquad", tmp_path, splits=("test",))


@pytest.mark.parametrize(
    ("name", "split"),
    [("1.Training/라벨링데이터/TL_tableqa.zip/TL_tableqa.json", "train"), ("2.Validation/라벨링데이터/VL.json", "dev"),
     ("VL_tableqa.json", "dev"), ("kommongen_test_1.1.json", "test"), ("BoolQ/test.tsv", "test"),
     ("xnli.dev.ko.tsv", "dev"), ("kor_Pair_test.csv", "test"), ("contest.json", "train"), ("sts-dev.tsv", "dev"),
     ("korquad2.1_dev_00.json", "dev"), ("latest/level.json", "train"), ("val.json", "dev"), ("VL1.zip/a.json", "dev"),
     ("[라벨]VL/a.json", "dev"), ("도서_검증.json", "dev"), ("02.검증/a.json", "dev"), ("testset.json", "test"),
     ("train_test/train.json", "train"), ("my-test/KorQuAD_v1.0_train.json", "train"), ("train_test/a.json", "test"),
     ("dev_test.jsonl", "test"), ("train_dev.json", "dev"), ("학습 자료_test.json", "test"),
     ("2.Validation/TL_a.json", "train"), ("validation-00000-of-00001.parquet", "dev"), ("환경영향평가.json", "train")],
)  # fmt: skip
def test_split_of_a_file(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("above", "split"),
    [("01.데이터/2.Validation", "dev"), ("2.Validation/라벨링데이터", "dev"), ("x/1.Training", "train"),
     ("home/dev", "train"), ("test/data", "train")],
)  # fmt: skip
def test_the_folder_that_was_named_tells_the_split_where_a_release_calls_it_so(above, split, tmp_path):
    assert split_of("도서1.json", above) == split
    write(tmp_path, {f"{above}/도서1.json": squad((BUS, RIGHT))})
    _, tally = read("aihub-book-mrc", tmp_path / above)
    assert dict(tally.records) == {split: 1}


def test_a_folder_that_was_named_counts_for_what_a_file_is_called(tmp_path):
    """klue/klue of the hub: mrc/train-00000-of-00001.parquet."""
    flat = {"title": "제목", "context": BUS, "guid": "q1", "is_impossible": False, "question": RIGHT["question"]}
    flat["answers"] = {"text": ["70세 이상"], "answer_start": [BUS.index("70세 이상")]}
    file = write(tmp_path, {"mrc/.keep": ""}) / "mrc" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([flat]), file)
    for path in (tmp_path, file.parent, file):
        assert read("klue-mrc", path)[0] == [mrc_row("klue-mrc")]


def test_a_folder_that_was_named_does_not_widen_what_is_read_below_it(tmp_path):
    files = {"etri/etri_mrc/a.json": squad((BUS, RIGHT)), "etri/ner/tags.json": {"data": [{"tags": []}]}}
    rows, tally = read("exobrain-mrc", write(tmp_path, files) / "etri")
    assert len(rows) == 1 and tally.ignored == ["ner/tags.json"]


def test_kobest_as_the_hub_has_it(tmp_path):
    tables = {
        "boolq": [{"paragraph": LAMP, "question": "높이는 18미터인가?", "label": 1}],
        "copa": [{"premise": "잔이 깨졌다.", "question": "원인", "alternative_1": "잔을 닦았다.",
                  "alternative_2": "잔을 떨어뜨렸다.", "label": 1}],
        "hellaswag": [{"context": "공을 던진다.", "ending_1": "가", "ending_2": "나", "ending_3": "공이 날아간다.",
                       "ending_4": "라", "label": 2}],
        "sentineg": [{"sentence": "좋아요", "label": 1}],
        "wic": [{"word": "철", "context_1": "[철]에 따라 피는 꽃.", "context_2": "꽃이 [철]을 맞았다.", "label": 1},
                {"word": "철", "context_1": "[철]에 따라 피는 꽃.", "context_2": "[철]로 만든 다리.", "label": 0}],
    }  # fmt: skip
    for task, records_of_task in tables.items():
        (tmp_path / task).mkdir()
        pq.write_table(pa.Table.from_pylist(records_of_task), tmp_path / task / "train-00000-of-00001.parquet")
    for task in ("boolq", "copa", "hellaswag", "wic"):
        wanted = GOLDEN[f"kobest-{task}"][1][-1]
        assert read(f"kobest-{task}", tmp_path)[0] == [wanted]
    with pytest.raises(SourceError, match="a review without a negated twin: 1"):
        read("kobest-sentineg", tmp_path)


# --- odd records -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("qa", "reason"),
    [
        ({"answers": [{"text": "70세 이상", "answer_start": str(BUS.index("70세"))}]}, ""),
        ({"answers": [at(BUS, "70세 이상")], "is_impossible": "false"}, ""),
        ({"answers": [at(BUS, "70세 이상")], "is_impossible": "true"}, "unanswerable"),
        ({"answers": {"text": "Yes", "answer_start": 0, "clue_start": 0, "clue_text": "한빛시는"}}, ""),
        ({"answers": {"text": "Yes", "answer_start": -1, "clue_start": 3, "clue_text": "한빛시는"}},
         "the answer is not at its offset"),
        ({"answer": 70}, ""),
        ({"answers": [{"text": "70세 이상", "answer_start": "처음"}]}, "the answer is not at its offset"),
        ({"answer": 13}, "the answer is not at its offset"),
    ],
)  # fmt: skip
def test_spellings_of_answers(qa, reason):
    tally = Tally()
    rows = [*questions({"context": BUS, "qas": [{"question": "대상은?"} | qa]}, "x", tally, "squad")]
    assert (len(rows), list(tally.dropped)) == ((0, [reason]) if reason else (1, []))


def test_the_text_of_a_table_decides_whether_it_is_long_and_its_caption_comes_first(tmp_path):
    wide = TABLE.replace("<td>", '<td style="width: 120px; text-align: center; border: 1px solid">')
    part = {
        "context": wide,
        "table_title": "2019년 요금",
        "qas": [{"question": "어른은?", "answer": at(wide, "1,400원")}],
    }
    tally = Tally(window=100)
    assert len(wide) > 100
    ((row, *_),) = [[*questions({"title": "제목", "paragraphs": [part]}, "x", tally, "squad")]]
    assert row["document"] == f"2019년 요금\n{plain(wide)}" and not tally.notes


def test_a_page_far_beyond_the_window_is_not_read_whole_for_each_question(monkeypatch):
    page, read = f"<p>{LAMP}</p>" + f"<p>{BUS}</p>" * 2000, []
    monkeypatch.setattr(mrc, "_text", lambda markup, text=mrc._text: read.append(len(markup)) or text(markup))
    asked = [{"question": "높이는?", "answer": at(page, "18미터")}] * 3
    tally = Tally(window=200)
    assert all(LAMP in row["document"] for row in questions({"context": page, "qas": asked}, "x", tally, "squad"))
    assert sum(read) < len(page) / 4 and tally.notes["paragraphs cut to a window around the answer"] == 3


@pytest.mark.parametrize("answer", ["13", ["13"], {"text": "13"}, 13, {"number": "13"}, None])
def test_computed_answers_need_not_occur_but_a_long_paragraph_needs_a_place(answer, tmp_path):
    asked = {"data": [{"passage": BUS, "qa_pairs": [{"question": "몇 살 차이인가?", "answer": answer}]}]}
    assert len(read("aihub-number-mrc", write(tmp_path, {"a.json": asked}))[0]) == 1
    with pytest.raises(SourceError, match="no place of the answer in a paragraph longer than the window: 1"):
        read("aihub-number-mrc", tmp_path, window=20)


def test_technical_documents_of_152(tmp_path):
    qas = [{"question-1": "높이는?", "question-2": "몇 미터인가?", "answer": "열여덟 미터", "answer_type": "단답형",
            "clue": [{"clue_text": "높이는 18미터이다."}]},
           {"question-1": "없는 단서는?", "question-2": None, "answer": "예", "clue": []}]  # fmt: skip
    long = f"<p>{BUS * 40}</p><p>{LAMP}</p>"
    for name, context in (("a.json", f"<p>{LAMP}</p>"), ("b.json", long)):
        part = {"context": context, "qas": qas}
        write(tmp_path, {name: {"dataset": {"doc_id": name, "context_info": [part]}}})
    rows, tally = read("aihub-tech-mrc", tmp_path)
    assert [row["query"] for row in rows] == ["높이는?", "몇 미터인가?", "없는 단서는?", "높이는?", "몇 미터인가?"]
    assert rows[0]["document"] == LAMP and LAMP in rows[3]["document"] and rows[0]["id"] == "a.json"
    assert dict(tally.dropped) == {"no place of the answer in a paragraph longer than the window": 1}


def test_null_fields_of_nikl_are_counted_and_missing_ones_named(tmp_path):
    news = json.loads(json.dumps(NEWS))
    news["document"][0]["paragraph"].append({"id": "x", "form": None})
    summaries = [{"document_id": "NWRW1800000001.1", "head": "등대", "summary_sentences": None}]
    write(tmp_path, {"NEWS/NWRW1800000001.json": news, "NIKL_SC.json": {"data": summaries}})
    rows, tally = read("nikl-summarisation", tmp_path)
    assert ([row["query"] for row in rows], dict(tally.dropped)) == (["등대"], {"no summary": 1})
    assert len(read("nikl-newspaper", tmp_path / "NEWS")[0]) == 1
    write(tmp_path, {"NIKL_PC.json": {"data": [{"sentence_id": "NWRW1800000001.1.2.1", "paraphrases": None}]}})
    with pytest.raises(SourceError, match="no rows .no paraphrase: 1"):
        read("nikl-paraphrase", tmp_path)
    for name, source in (("NIKL_SC.json", "nikl-summarisation"), ("NIKL_PC.json", "nikl-paraphrase")):
        write(tmp_path, {name: {"data": [{"id": 1}]}})
        with pytest.raises(SourceError, match=f"{name}, row 1: found no field"):
            read(source, tmp_path)


def test_evidence_is_a_sentence_and_not_its_number(tmp_path):
    head = "질문,정답,정답 근거1(문서 번호),정답 근거1(문장),정답 근거 2(본문)\n"
    files = {"단문질문.csv": f"{head}높이는?,18,12,{LAMP},등대다\n", "목록.csv": "파일,크기\na,1\n"}
    rows, tally = read("exobrain-evidence", write(tmp_path, files))
    assert rows[0]["document"] == [LAMP, "등대다"]
    assert dict(tally.dropped) == {"a line of a table without questions": 1}


# --- long contexts ---------------------------------------------------------------------------------------------------


def test_a_long_context_becomes_a_window_around_the_answer():
    words = [f"낱말{i}" for i in range(2000)]
    context = " ".join(words)
    for answer in ("낱말0", "낱말1000", "낱말1999"):
        start = context.index(answer)
        text = excerpt(context, start, start + len(answer), 500, "제목")
        title, _, window = text.partition("\n")
        assert title == "제목" and answer in window and 400 < len(window) <= 500
        assert set(window.split()) <= set(words), "the window is cut at spaces"


def test_an_answer_longer_than_the_window_keeps_its_beginning():
    context = "앞말 " + "답" * 900 + " 뒷말"
    assert excerpt(context, 3, 903, 300) == "답" * 300


def test_markup_around_a_window_is_taken_out():
    page = "<html><body>" + '<p class="a">문단이다 그리고.</p>' * 400
    page += "<table><tr><th>높이</th><td>18미터</td></tr></table>" + "<div><b>끝말이다</b> 그렇다.</div>" * 400
    start = page.index("18미터")
    text = excerpt(page, start, start + 4, 300, "등대")
    assert "높이 | 18미터" in text and "<" not in text and ">" not in text and len(text) <= 304


def test_markup_becomes_text_and_plain_text_stays():
    assert plain("<p>가 &amp; 나</p><script>x</script><ul><li>다</li><li>라</li></ul>") == "가 & 나\n다\n라"
    assert plain("a < b 그리고 c > d") == "a < b 그리고 c > d"


@pytest.mark.parametrize(
    "text",
    [
        "감독은 <Okja>와 <설국열차>를 찍었다.",
        "홍길동 <hong@koir.kr> 기자",
        "x <y 이고 z> w",
        "<LUV>는 노래, <Universe 5-IV>는 그림이다.",
    ],
)
def test_brackets_of_plain_text_are_no_markup(text):
    assert plain(text) == text
    context = f"{text} {LAMP}"
    assert read_squad(context, "18미터") == context


def test_markup_goes_and_titles_in_it_stay():
    assert plain("<p>감독은 <설국열차>를 <o:p></o:p><b class='x'>찍었다</b>.</p>") == "감독은 <설국열차>를 찍었다."


def read_squad(context, answer):
    qa = {"question": "무엇인가?", "answers": [at(context, answer)]}
    ((row, *_),) = [[*questions(squad((context, qa))["data"][0], "x", Tally(), "squad")]]
    return row["document"]


SOURCE_FILES = ["[원천]도서.zip/a.json", "TS.zip/a.json", "TS1.zip/a.json", "VS_도서.zip/a.json", "원천.zip/a.json",
                "원천 데이터/a.json", "원시데이터/a.json", "Other/메타데이터.zip/a.json"]  # fmt: skip


@pytest.mark.parametrize("name", SOURCE_FILES)
def test_the_vendors_source_files_beside_labels_are_left_alone(name, tmp_path):
    label = squad((BUS, {"question": "무엇인가?", "answers": [at(BUS, "버스")]}))
    files = {name: {"data": [{"paragraphs": [{"context": LAMP}]}]}, "라벨링데이터/TL1.zip/원천징수.json": label}
    (rows, tally) = read("aihub-book-mrc", write(tmp_path, files))
    assert [row["document"] for row in rows] == [BUS] and not tally.dropped
    assert [note for note in tally.notes if name in note]


def test_a_source_file_of_another_name_is_no_bad_label_file(tmp_path):
    label = squad((BUS, {"question": "무엇인가?", "answers": [at(BUS, "버스")]}))
    files = {"source/a.json": {"data": [{"paragraphs": [{"context": LAMP}]}]}, "label/b.json": label}
    ((row,), tally) = read("aihub-book-mrc", write(tmp_path, files))
    assert row["document"] == BUS and tally.dropped == {"no questions (a source file?)": 1}


@pytest.mark.parametrize("name", ["TL_tableqa_1.json", "[라벨]TL_tableqa.json", "TL_tableqa.zip/표.json"])
def test_names_that_label_files_of_016_may_have(name, tmp_path):
    label = squad((BUS, {"question": "무엇인가?", "answers": [at(BUS, "버스")]}))
    (rows, tally) = read("aihub-admin-mrc", write(tmp_path, {name: label, "TS_span_extraction.json": {"data": []}}))
    assert len(rows) == 1 and tally.notes["not in this download: span_extraction."] == 1


def test_questions_without_answer_by_the_files_name(tmp_path):
    label = squad((BUS, {"question": "무엇인가?", "answers": [at(BUS, "버스")]}))
    (rows, tally) = read("aihub-news-mrc", write(tmp_path, {"TL_unanswerable.json": label, "TL_a.json": label}))
    assert (len(rows), tally.dropped, tally.questions) == (1, {"unanswerable": 1}, 2)


def test_offsets_that_count_a_line_end_as_one_character():
    context = f"{BUS}\r\n{LAMP}"
    start = context.replace("\r\n", "\n").index("18미터")
    qa = {"question": "높이는?", "answers": [{"text": "18미터", "answer_start": start}]}
    tally = Tally()
    assert [*questions(squad((context, qa))["data"][0], "x", tally, "squad")] and not tally.dropped


def test_a_table_whose_cells_have_no_end():
    assert plain("<table><TR><TH>구분<TH>요금<TR><TD>어른<TD>1,400원</table>") == "구분 | 요금\n어른 | 1,400원"


# --- your own data ---------------------------------------------------------------------------------------------------


def own(tmp_path, name, files):
    return [row | {"source": None} for row in read(name, write(tmp_path / "download", files))[0]]


def test_lists_of_documents_are_rows_of_their_own_and_are_read_back(tmp_path):
    row = {"query": "버스", "document": [BUS, LAMP], "id": 0}
    wanted = {"query": "버스", "document": [BUS, LAMP], "source": None, "id": "0"}
    assert own(tmp_path, "triplets", {"rows.jsonl": lines(row, row | {"document": BUS})})[0] == wanted
    files = {"rows.jsonl": lines(row, row | {"document": []}), "report.json": {"rows": 2}, "run.json": {"kind": "rows"}}
    rows, tally = read("triplets", write(tmp_path / "none", files))
    assert (len(rows), dict(tally.dropped)) == (1, {"field document: nothing": 1})


@pytest.mark.parametrize("empty", ["", " ", [""], [None], None, []])
@pytest.mark.parametrize("name", ["hard_negative", "neg"])
def test_a_hard_negative_that_is_missing_costs_no_row(name, empty, tmp_path):
    row = {"query": "버스", "document" if name == "hard_negative" else "pos": BUS, name: empty}
    assert own(tmp_path, "bge", {"rows.jsonl": lines(row)}) == [{"query": "버스", "document": BUS, "source": None}]


def test_a_missing_hard_negative_of_a_line_with_tabs(tmp_path):
    rows = own(tmp_path, "triplets", {"marco.tsv": tsv(["등대", LAMP, ""], ["버스", BUS, LAMP])})
    assert [row.get("hard_negative") for row in rows] == [None, LAMP]


def test_reasons_are_few_however_many_values_are_wrong(tmp_path):
    rows = [{"query": i, "document": BUS} for i in range(9)]
    rows += [{"query": "버스", "document": BUS, "hard_negative": ["가"] * i + [7]} for i in range(9)]
    files = {"rows.jsonl": lines({"query": "등대", "document": LAMP}, *rows)}
    _, tally = read("triplets", write(tmp_path, files))
    assert dict(tally.dropped) == {"field query: int": 9, "field hard_negative: int": 9}


def test_tables_with_tabs_as_programs_write_them(tmp_path):
    table = f'query\tdocument\n대상은?\t"그는 ""무료""라고\n말했다."\n등대는?\t{LAMP}\n'
    rows = own(tmp_path, "csv", {"x.tsv": table})
    assert [row["document"] for row in rows] == ['그는 "무료"라고\n말했다.', LAMP]


@pytest.mark.parametrize("later", ["", '"닫힌" 말'])
def test_a_quote_that_swallows_lines_is_an_error(later, tmp_path):
    table = ["query,document", *[f"질문 {i},{LAMP}" for i in range(20)]]
    table[10] = f'"그는 안녕이라 했다?,{BUS}'
    table[15] = f'질문,"{later or LAMP}"' if later else table[15]
    with pytest.raises(SourceError, match="line 11: found a quote that opens here and takes in"):
        own(tmp_path, "csv", {"x.csv": "\n".join(table)})


@pytest.mark.parametrize("behind", [" ", "  ", "\x1a", " \x1a"])
def test_blanks_behind_a_quoted_cell_are_nothing(behind, tmp_path):
    table = f'query,document\n"버스{behind}"{behind},"{BUS}"\n등대,"{LAMP}"{behind}\r\n물음,"{LAMP}"{behind}'
    rows = own(tmp_path, "csv", {"x.csv": table})
    assert [row["document"] for row in rows] == [BUS, LAMP, LAMP]


def test_what_is_wrong_with_a_line_is_named(tmp_path):
    for line, said in ((f'물음,"{BUS}', "a quote that is not closed"), (f"물\r음,{BUS}", "unreadable data .new-line")):
        with pytest.raises(SourceError, match=said):
            own(tmp_path / said[:9], "csv", {"x.csv": f"query,document\n{line}"})


@pytest.mark.parametrize("cell", ['"무엇"이 무엇인가?', r'"그가 \"왜\" 라고 했나"'])
def test_quotes_within_a_cell(cell, tmp_path):
    with pytest.raises(SourceError, match="x.csv, line 3: found a quote within a cell"):
        own(tmp_path, "csv", {"x.csv": f"query,document\n등대,{LAMP}\n{cell},{BUS}\n"})
    rows = own(tmp_path / "tabs", "csv", {"x.tsv": f'query\tdocument\n{cell}\t{BUS}\r\n"등"\t"{LAMP}"\n'})
    assert [(row["query"], row["document"]) for row in rows] == [(cell, BUS), ("등", LAMP)]


def test_doubled_quotes_of_a_table_that_otherwise_quotes_nothing(tmp_path):
    cells = ['"""강"" 단계로"', '"강"', '"가" 나 "다"', '"가 ""나"', '""']
    table = "query\tdocument\n" + "".join(f"질문 {cell}\t{cell}{LAMP}\n{cell}\t{BUS}\n" for cell in cells[:-1])
    found = [*records(File("x.txt", "x.txt", lambda: io.BytesIO(table.encode())), Tally(), quoted=False)]
    assert [row["query"] for row, _ in found[1::2]] == ['"강" 단계로', '"강"', '"가" 나 "다"', '가 "나']
    assert found[0][0] == {"query": f"질문 {cells[0]}", "document": cells[0] + LAMP}


def test_places_of_a_table_count_rows(tmp_path):
    for table, header, row in (("\n\n질문\t글\n가\t나\n다\n", True, 2), ("\n가\t나\n다\n", False, 2)):
        tally = Tally()
        [*records(File("x.tsv", "x.tsv", lambda table=table: io.BytesIO(table.encode())), tally, header)]
        assert list(tally.examples.values()) == [[f"x.tsv, row {row}"]]


def test_line_ends_of_old_macs(tmp_path):
    assert len(own(tmp_path, "csv", {"x.csv": f"query,document\r버스,{BUS}\r등대,{LAMP}\r"})) == 2


def workbook(*sheets, dimension=None):
    book, stream = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"표{number}")
        for row in rows:
            sheet.append(row)
    book.save(stream)
    if not dimension:
        return stream.getvalue()
    stated, other = io.BytesIO(), zipfile.ZipFile(stream)
    with zipfile.ZipFile(stated, "w") as archive:
        for name in other.namelist():
            content = other.read(name)
            if "worksheets/" in name:
                content = re.sub(rb'<dimension ref="[^"]*"', f'<dimension ref="{dimension}"'.encode(), content)
            archive.writestr(name, content)
    return stated.getvalue()


def test_the_answers_of_a_faq_are_its_documents_where_it_has_no_others(tmp_path):
    faq = f"번호,질문,답변\r\n1,대상은?,{BUS}\r\n".encode("cp949")
    with_text = f"질문,답변,본문\r\n높이는?,18미터,{LAMP}\r\n".encode("utf-8-sig")
    rows = own(tmp_path, "csv", {"FAQ (최종).csv": faq, "나.csv": with_text})
    assert [(row["query"], row["document"]) for row in rows] == [("대상은?", BUS), ("높이는?", LAMP)]


def test_each_sheet_has_a_header_of_its_own(tmp_path):
    book = workbook(
        [["question", "answer", "doc"], ["대상은?", "노인", BUS]],
        [["question", "doc", "answer"], ["높이는?", LAMP, "18미터"]],
    )
    assert [row["document"] for row in own(tmp_path, "csv", {"둘.xlsx": book})] == [BUS, LAMP]
    book = workbook([["question", "doc"], ["대상은?", BUS]], [["메모"], ["끝"]])
    assert [row["document"] for row in own(tmp_path / "b", "csv", {"셋.xlsx": book})] == [BUS]


def test_sheets_that_state_no_size_and_rows_without_their_last_empty_cells(tmp_path):
    rows = [["question", "doc", "note"], ["대상은?", BUS], ["높이는?", LAMP, "메모"], ["등대는?", LAMP, None, None]]
    assert len(own(tmp_path, "csv", {"x.xlsx": workbook(rows, dimension="A1")})) == 3


def test_what_excel_writes_for_a_line_end_and_workbooks_that_cannot_be_read(tmp_path):
    book = workbook([["query", "document"], ["버스", f"{BUS}_x000D_\n둘째 줄"], ["등대", f"_x005F_x000D_ {LAMP}"]])
    assert [row["document"] for row in own(tmp_path, "csv", {"x.xlsx": book})] == [
        f"{BUS}\r\n둘째 줄",
        f"_x000D_ {LAMP}",
    ]
    odd, other = io.BytesIO(), zipfile.ZipFile(io.BytesIO(book))
    with zipfile.ZipFile(odd, "w") as archive:
        for name in other.namelist():
            archive.writestr(name, re.sub(rb'<family val="2"', b'<family val="34"', other.read(name)))
    with pytest.raises(SourceError, match="x.xlsx: found an odd workbook .*; expected one that Excel saved anew"):
        own(tmp_path, "csv", {"x.xlsx": odd.getvalue()})


def test_one_folder_for_all_is_not_read_by_sources_it_does_not_belong_to(tmp_path):
    folder = write(tmp_path, {
        "etri_mrc/train.json": squad((BUS, RIGHT)), "aihub-016-admin-mrc/TL_span_extraction.json": ADMIN,
        "klue-mrc-v1.1/klue-mrc-v1.1_train.json": squad((LAMP, {"question": "?", "answers": [at(LAMP, "18미터")]})),
    })  # fmt: skip
    assert [row["document"] for row in read("klue-mrc", folder)[0]] == [LAMP]
    assert [row["document"] for row in read("exobrain-mrc", folder)[0]] == [BUS]
    assert len(read("exobrain-mrc", folder / "etri_mrc")[0]) == 1


# --- real files: counts by a second reading, with the standard library alone ------------------------------------------


def real(*names):
    folder = DATA.joinpath(*names)
    if not folder.exists():
        pytest.skip(f"no {'/'.join(names)} in the data folder (KOIR_DATA)")
    return folder


def table(folder, name, **how):
    text = gzip.decompress((folder / name).read_bytes()).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline=""), **how))


TABS = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}


def test_real_korquad():
    folder = real("raw", "korquad")
    (file,) = folder.iterdir()
    data = json.loads(gzip.decompress(file.read_bytes()))["data"]
    asked = [(qa, p["context"]) for a in data for p in a["paragraphs"] for qa in p["qas"]]
    right = [qa for qa, c in asked if c.startswith(qa["answers"][0]["text"], qa["answers"][0]["answer_start"])]
    rows, tally = read("korquad", folder)
    assert len(asked) == len(right) == len(rows) == 4055
    assert [row["query"] for row in rows] == [qa["question"].strip() for qa in right]
    assert not tally.dropped and tally.notes["paragraphs cut to a window around the answer"] == 65
    assert all(qa["answers"][0]["text"].strip() in row["document"] for qa, row in zip(right, rows, strict=True))


def test_real_klue():
    folder = real("raw", "klue")
    rows, tally = read("klue-nli", folder)
    assert (len(rows), tally.dropped["neutral"], tally.records["dev"]) == (1000, 1000, 3000)
    assert all(row["hard_negative"] for row in rows)
    rows, tally = read("klue-sts", folder)
    pairs = json.loads(gzip.decompress((folder / "klue-sts-v1.1_dev.json.gz").read_bytes()))
    assert len(rows) == sum(pair["labels"]["real-label"] >= 4 for pair in pairs) == 110
    assert tally.dropped["similarity below 4.0 of 5"] == 409


def test_real_kobest():
    folder = real("raw", "kobest")
    counts = {"boolq": 5769, "copa": 4576, "hellaswag": 3029, "sentineg": 397, "wic": 2556}
    for task, count in counts.items():
        rows, tally = read(f"kobest-{task}", folder)
        assert (len(rows), len(tally.files)) == (count, 3), task
    texts = {
        row["Text"].strip()
        for split in ("train", "dev", "test")
        for row in table(folder, f"BoolQ/{split}.tsv.gz", **TABS)
    }
    assert {row["document"] for row in read("kobest-boolq", folder)[0]} == texts
    stories = read("kobest-hellaswag", folder)[0]
    texts = [text for row in stories for text in (row["query"], row["document"], *row["hard_negative"])]
    assert not any('""' in text for text in texts) and sum('"강" 단계로' in text for text in texts) > 0
    same = [row for s in ("train", "dev", "test") for row in table(folder, f"WiC/{s}.tsv.gz", **TABS)]
    assert sum(row["ANSWER"].upper() == "TRUE" for row in same) == 2556


def test_real_kommongen_and_kornlu():
    assert len(read("kommongen", real("raw", "kommongen"))[0]) == 1000 + 1432
    folder = real("raw", "kornlu")
    rows, tally = read("kornli", folder)
    assert (len(rows), tally.dropped["the query is its own document"], tally.dropped["neutral"]) == (2498, 2, 2500)
    pairs = [row for s in ("train", "dev", "test") for row in table(folder, f"KorSTS/sts-{s}.tsv.gz", **TABS)]
    good = [pair for pair in pairs if float(pair["score"]) >= 4]
    rows, tally = read("korsts", folder)
    assert len(good) == 1406 + 264 + 338
    assert len(rows) == sum(p["sentence1"].strip() != p["sentence2"].strip() for p in good) == 1960


def test_real_chat():
    rows, _ = read("chatbot", real("raw", "chatbot"))
    assert len(rows) == 11_823 - 1
    folder = real("raw", "question_pair")
    pairs = table(folder, "kor_pair_train.csv.gz") + table(folder, "kor_Pair_test.csv.gz")
    same = [p for p in pairs if p["is_duplicate"] == "0"]
    rows, tally = read("question-pair", folder)
    assert len(same) == 4750 + 359
    assert len(rows) == sum(p["question1"].strip() != p["question2"].strip() for p in same)
    assert len(read("parakqc", real("raw", "parakqc"))[0]) == 1000
    assert len(read("bge", real("raw", "ko-reranker"))[0]) == 10


@pytest.mark.parametrize(
    ("name", "path", "count", "dropped"),
    [
        ("aihub-admin-mrc", "aihub-016-admin-mrc", 30, {"unanswerable": 5}),
        ("aihub-news-mrc", "aihub-017-news-mrc", 20, {"unanswerable": 5}),
        ("aihub-mrc", "aihub-089-mrc", 10, {"unanswerable": 5}),
        ("aihub-book-mrc", "aihub-092-book-mrc", 5, {}),
        ("aihub-commonsense", "aihub-106-commonsense", 3, {}),
        ("aihub-number-mrc", "aihub-150-number-mrc.json", 1, {}),
        ("aihub-table-qa", "aihub-71565-table-qa.json", 1, {}),
        ("klue-mrc", "klue-mrc-v1.1", 5, {"unanswerable": 1}),
        ("korquad-2.1", "korquad-2.1", 2, {}),
        ("exobrain-mrc", "exobrain", 5, {}),
        ("exobrain-evidence", "exobrain", 1, {"a quiz question without a passage": 2}),
        ("nikl-newspaper", "nikl", 3, {}),
        ("nikl-summarisation", "nikl", 6, {}),
        ("nikl-paraphrase", "nikl", 1, {}),
    ],
)
def test_real_shapes_of_sources_that_cannot_be_had(name, path, count, dropped):
    rows, tally = read(name, real("formats", path))
    assert (len(rows), dict(tally.dropped)) == (count, dropped)
