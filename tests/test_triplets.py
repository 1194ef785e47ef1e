import gzip
import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koir.errors import RowError
from koir.triplets import check_row, load_triplets, report, text_hash

QUERY, DOCUMENT, NEGATIVE = "연차는 며칠인가요?", "연차 유급휴가는 열닷새이다.", "퇴직금은 한 달 치 임금이다."
GOOD = {"query": QUERY, "document": DOCUMENT, "hard_negative": NEGATIVE}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("KOIR_CACHE", str(folder))
    return folder


@pytest.fixture
def rows(tmp_path):
    """Write rows (objects, or lines as they are) under a name and load them."""

    def load(*rows, name="rows.jsonl", raw=None, after="\n"):
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        data = "".join(line + after for line in lines).encode() if raw is None else raw
        file = tmp_path / name
        file.write_bytes(gzip.compress(data) if raw is None and name.endswith(".gz") else data)
        return load_triplets([str(file)])

    return load


@pytest.fixture
def refusal(rows, cache):
    """The message with which rows are refused; nothing may be left in the cache."""

    def load(*args, **kwargs):
        with pytest.raises(RowError) as caught:
            rows(*args, **kwargs)
        assert list(cache.iterdir()) == []
        return str(caught.value)

    return load


def without(field):
    return {name: value for name, value in GOOD.items() if name != field}


BAD_ROWS = {
    "empty query": (GOOD | {"query": ""}, "field query: found an empty text; expected a text"),
    "blank query": (GOOD | {"query": " \u3000\n"}, "field query: found an empty text; expected a text"),
    "missing query": (without("query"), "field query: found nothing; expected a text"),
    "null query": (GOOD | {"query": None}, "field query: found nothing; expected a text"),
    "query is a number": (GOOD | {"query": 15}, "field query: found int (15); expected a text"),
    "query is a list": (GOOD | {"query": [QUERY]}, "field query: found list (['연차는"),
    "empty document": (GOOD | {"document": ""}, "field document: found an empty text; expected a text"),
    "missing document": (without("document"), "field document: found nothing; expected a text or a list of texts"),
    "no documents": (GOOD | {"document": []}, "field document: found nothing; expected a text or a list of texts"),
    "document is a dict": (GOOD | {"document": {}}, "field document: found dict ({}); expected a text"),
    "one document empty": (GOOD | {"document": [DOCUMENT, ""]}, "field document[1]: found an empty text; expected"),
    "one document null": (GOOD | {"document": [None]}, "field document[0]: found nothing; expected a text"),
    "hard negative empty": (GOOD | {"hard_negative": ""}, "field hard_negative: found an empty text; expected a text"),
    "hard negative bool": (GOOD | {"hard_negative": True}, "field hard_negative: found bool (True); expected a text"),
    "its own negative": (
        GOOD | {"hard_negative": [NEGATIVE, DOCUMENT]},
        f"field hard_negative: found the document itself ({DOCUMENT!r}); expected another text",
    ),
    "its own negative, decomposed": (
        GOOD | {"hard_negative": unicodedata.normalize("NFD", DOCUMENT)},
        "field hard_negative: found the document itself",
    ),
    "its own negative, spaced otherwise": (
        GOOD | {"hard_negative": f"{DOCUMENT.replace(' ', '  ')}\n"},
        "field hard_negative: found the document itself",
    ),
    "half of a surrogate pair": (
        GOOD | {"query": "휴가\ud83d"},
        "field query: found half of a surrogate pair; expected",
    ),
    "surrogate in a negative": (GOOD | {"hard_negative": ["\udc00"]}, "field hard_negative[0]: found half of a"),
    "too many scores": (
        GOOD | {"document_score": [1.0, 2.0]},
        "field document_score: found 2 numbers; expected 1, one for each text",
    ),
    "too few scores": (
        GOOD | {"hard_negative": [NEGATIVE, "야근 수당"], "hard_negative_score": 0.5},
        "field hard_negative_score: found 1 numbers; expected 2, one for each text",
    ),
    "scores of no negatives": (
        without("hard_negative") | {"hard_negative_score": [0.5]},
        "field hard_negative_score: found 1 numbers; expected 0",
    ),
    "score is NaN": (
        GOOD | {"document_score": float("nan")},
        "document_score: found float (nan); expected finite",
    ),
    "score is a text": (
        GOOD | {"document_score": "높음"},
        "document_score: found str ('높음'); expected finite",
    ),
    "score is a bool": (
        GOOD | {"document_score": True},
        "document_score: found bool (True); expected finite",
    ),
    "source is a number": (GOOD | {"source": 7}, "field source: found int (7); expected a text"),
    "a list": ([QUERY, DOCUMENT], "found list; expected a JSON object with query and document"),
    "a text": ('"연차"', "found str; expected a JSON object with query and document"),
}


@pytest.mark.parametrize(("row", "said"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_refused_with_file_line_and_field(refusal, tmp_path, row, said):
    bad = row if isinstance(row, str) else json.dumps(row, ensure_ascii=True)
    message = refusal(GOOD, bad, GOOD)
    place, _, rest = message.partition(", line 2")
    assert place == str(tmp_path / "rows.jsonl")
    assert said in rest and "; expected " in rest


BAD_LINES = {
    "cut short": ('{"query": "연차'.encode(), "found broken JSON (", "expected one JSON object a line"),
    "two objects": (b"{} {}", "found broken JSON (", "expected one JSON object a line"),
    "python, not JSON": (b"{'query': 1}", "found broken JSON (", "expected one JSON object a line"),
    "nested too deep": (b"[" * 200_000, "found broken JSON (", "expected one JSON object a line"),
    "blank": (b"  ", "found an empty line", "expected a JSON object"),
    "CP949": (
        '{"query": "연차"}'.encode("cp949"),
        "found byte 0xbf at position 11",
        "expected UTF-8 text (this is CP949: iconv -f cp949 -t utf-8 OLD > NEW)",
    ),
    "half a syllable": ("연차".encode()[:-1], "found byte 0xec at position 3", "expected UTF-8 text"),
    "a BOM inside": (b"\xef\xbb\xbf{}", "found broken JSON (", "expected one JSON object a line"),
}


@pytest.mark.parametrize(("line", "found", "expected"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_broken_line_names_file_and_line(refusal, tmp_path, line, found, expected):
    message = refusal(raw=json.dumps(GOOD).encode() + b"\n" + line + b"\n" + json.dumps(GOOD).encode())
    assert message.startswith(f"{tmp_path}/rows.jsonl, line 2: {found}")
    assert message.endswith(f"; {expected}")


PLAIN = json.dumps(GOOD).encode()


def test_a_mistyped_file_in_a_folder_that_is_here_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my/ok.jsonl").write_bytes(PLAIN)
    for name in ("my/ok.jsonll", "my/ok", "없는/파일.txt"):
        with pytest.raises(RowError, match="no such file; expected a file of rows"):
            load_triplets([name])


def test_blank_lines_at_the_end_are_none(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(PLAIN + b"\n\n  \n")
    assert load_triplets([str(tmp_path / "rows.jsonl")]).counts["rows"] == 1


@pytest.mark.parametrize("text", ["\u200b", "\u3164 \ufeff", "\u00ad\u2060"])
def test_a_text_of_which_nothing_is_seen_is_empty(refusal, text):
    assert "field query: found an empty text" in refusal(GOOD | {"query": text})


MISNAMED = {
    "gzip as jsonl": ("rows.jsonl", gzip.compress(PLAIN), "found a gzip file; expected plain data"),
    "plain as gzip": ("rows.jsonl.gz", PLAIN, "found plain data; expected a gzip file"),
    "text as parquet": ("rows.parquet", PLAIN, "found plain data; expected a Parquet file"),
    "zip as jsonl": ("rows.jsonl", b"PK\x03\x04" + PLAIN, "found a zip file; expected plain data"),
    "unknown ending": ("rows.csv", PLAIN, "found an unknown ending; expected a name that ends in .jsonl, .jsonl.gz"),
    "a table": (
        "rows.xlsx",
        PLAIN,
        "found an unknown ending; expected a name that ends in .jsonl, .jsonl.gz or .parquet; "
        "prepare_data.py --source csv=",
    ),
    "no ending": ("rows", PLAIN, "found an unknown ending; expected a name that ends in"),
    "cut parquet": ("rows.parquet", b"PAR1" + PLAIN, "found unreadable data ("),
}


@pytest.mark.parametrize(("name", "data", "said"), MISNAMED.values(), ids=MISNAMED)
def test_a_file_must_be_what_its_ending_says(refusal, tmp_path, name, data, said):
    assert refusal(name=name, raw=data).startswith(f"{tmp_path / name}: {said}")


def test_a_truncated_gzip_says_after_which_line(refusal, tmp_path):
    lines = b"".join(json.dumps(GOOD | {"query": f"{text_hash(str(n))}"}).encode() + b"\n" for n in range(500))
    message = refusal(name="rows.jsonl.gz", raw=gzip.compress(lines)[:-2000])
    assert message.startswith(f"{tmp_path}/rows.jsonl.gz, after line ")
    assert 0 < int(message.split("after line ")[1].split(":")[0]) < 500
    assert "found unreadable data (" in message and message.endswith("; expected a complete file")


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.jsonl", b""), ("a.jsonl.gz", gzip.compress(b"")), ("a.jsonl.gz", b"")],
    ids=["plain", "gzip of nothing", "no byte"],
)
def test_an_empty_file_is_refused(rows, tmp_path, name, data):
    with pytest.raises(RowError) as caught:
        rows(name=name, raw=data)
    assert str(caught.value) == f"{tmp_path / name}: found no rows; expected at least one row with query and document"


def test_a_missing_file_is_refused_with_the_nearest_name(rows, tmp_path):
    rows(GOOD, name="근로계약.jsonl")
    with pytest.raises(RowError) as caught:
        load_triplets([str(tmp_path / "근로계악.jsonl")])
    found, _, expected = str(caught.value).partition("; expected ")
    assert found == f"--train_data {tmp_path}/근로계악.jsonl: found no such file"
    assert expected == "a file of rows; did you mean 근로계약.jsonl?"


def test_the_second_file_is_named_when_it_is_the_bad_one(rows, tmp_path):
    rows(GOOD, name="good.jsonl")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(RowError, match=r"bad\.jsonl, line 1, field query: found nothing"):
        load_triplets([str(tmp_path / "good.jsonl"), str(tmp_path / "bad.jsonl")])


# --- what becomes of good rows ---------------------------------------------------------------------------------------


def test_decomposed_text_becomes_composed(rows):
    nfd = {name: unicodedata.normalize("NFD", text) for name, text in GOOD.items()}
    assert nfd != GOOD
    decomposed, composed = rows(nfd), rows(GOOD, name="nfc.jsonl")
    assert decomposed.fingerprint == composed.fingerprint
    pair = decomposed.pairs[0]
    assert (pair["query"], pair["document"], pair["hard_negatives"]) == (QUERY, DOCUMENT, [NEGATIVE])


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["no BOM", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("last", [True, False], ids=["last line ends", "last line open"])
def test_line_ends_and_bom_do_not_matter(rows, start, end, last):
    lines = [json.dumps(GOOD | {"query": query}, ensure_ascii=False).encode() for query in ("휴가", "임금")]
    loaded = rows(raw=start + end.join(lines) + (end if last else b""))
    assert loaded.pairs["query"][:] == ["휴가", "임금"]
    assert loaded.counts["rows"] == 2


def test_exact_duplicates_are_dropped_and_counted(rows):
    loaded = rows(GOOD, GOOD | {"query": "다른 질문"}, GOOD, GOOD | {"id": "4"})
    assert loaded.counts["rows"] == 4
    assert (loaded.counts["pairs"], loaded.counts["duplicates"]) == (2, 2) and len(loaded.pairs) == 2
    assert loaded.fingerprint == rows(GOOD, GOOD | {"query": "다른 질문"}, name="once.jsonl").fingerprint


def test_many_rows_are_each_written_once(rows):
    """More than go to disk at once."""
    queries = [f"질문 {number}" for number in range(2500)]
    loaded = rows(*(GOOD | {"query": query} for query in queries))
    assert loaded.pairs["query"][:] == queries and loaded.counts["pairs"] == 2500


def test_a_list_of_documents_becomes_pairs_that_know_each_other(rows):
    loaded = rows({"query": QUERY, "document": [DOCUMENT, "연차는 15일"], "document_score": [3, 2.5]})
    first, second = loaded.pairs
    assert (first["document"], second["document"]) == (DOCUMENT, "연차는 15일")
    assert (first["document_score"], second["document_score"]) == (3.0, 2.5)
    assert first["right_answers"] == second["right_answers"] == [text_hash(DOCUMENT), text_hash("연차는 15일")]
    assert loaded.counts["rows"] == 1 and loaded.counts["pairs"] == 2


def test_bge_rows_are_read(rows):
    ours = GOOD | {"document": [DOCUMENT], "hard_negative": [NEGATIVE, "야근"]}
    ours |= {"document_score": [1.5], "hard_negative_score": [0.5, -2]}
    bge = {"query": QUERY, "pos": [DOCUMENT], "neg": [NEGATIVE, "야근"], "pos_scores": [1.5], "neg_scores": [0.5, -2]}
    loaded = rows(bge | {"prompt": "질의"})
    assert loaded.fingerprint == rows(ours, name="ours.jsonl").fingerprint
    assert loaded.pairs[0]["hard_negative_scores"] == [0.5, -2.0]
    assert loaded.counts["ignored_columns"] == ["prompt"]


@pytest.mark.parametrize(
    "row", [without("hard_negative"), GOOD | {"hard_negative": None}, GOOD | {"hard_negative": []}]
)
def test_a_row_may_have_no_hard_negative(rows, row):
    loaded = rows(row)
    assert loaded.pairs[0]["hard_negatives"] == []
    assert loaded.fingerprint == rows(without("hard_negative"), name="without.jsonl").fingerprint


@pytest.mark.parametrize("beside", [None, 7.0])
def test_a_hard_negative_that_is_null_takes_its_score_with_it(rows, beside):
    pair = rows(GOOD | {"hard_negative": [None, NEGATIVE], "hard_negative_score": [beside, 0.5]}).pairs[0]
    assert (pair["hard_negatives"], pair["hard_negative_scores"]) == ([NEGATIVE], [0.5])
    assert rows(GOOD | {"hard_negative": [None], "hard_negative_score": [beside]}, name="none.jsonl").pairs[0][
        "hard_negatives"] == []  # fmt: skip


def test_ignored_columns_are_named_in_the_report(rows):
    loaded = rows(GOOD | {"등급": 1, "id": "a1"}, GOOD | {"query": "둘", "author": "x"}, GOOD)
    assert loaded.counts["ignored_columns"] == ["author", "등급"]
    line = report(loaded.counts)
    assert line == "3 rows, 2 pairs, 1 exact duplicates dropped, columns ignored: author, 등급"


def test_a_report_without_ignored_columns_does_not_speak_of_them(rows):
    assert report(rows(GOOD).counts) == "1 rows, 1 pairs, 0 exact duplicates dropped"


def test_pairs_are_counted_by_source(rows):
    loaded = rows(GOOD | {"source": "민법"}, GOOD | {"source": "세법", "query": "둘"}, GOOD)
    assert loaded.counts["sources"] == {"민법": 1, "세법": 1, "unnamed": 1}


# --- fingerprint and cache -------------------------------------------------------------------------------------------


def test_the_fingerprint_depends_on_content_alone(rows):
    plain = rows(GOOD, GOOD | {"query": "둘"})
    zipped = rows(GOOD, GOOD | {"query": "둘"}, name="other.jsonl.gz")
    respaced = rows(json.dumps(GOOD, indent=None, separators=(",", ":")), GOOD | {"query": "둘"}, name="spaced.jsonl")
    assert plain.fingerprint == zipped.fingerprint == respaced.fingerprint
    assert len(plain.fingerprint) == 64


def test_a_parquet_row_may_have_the_columns_of_both_spellings(rows, tmp_path):
    plain, bge = GOOD | {"pos": None, "neg": None}, {"query": "둘", "document": None, "pos": ["셋"], "neg": [None]}
    pairs = rows(plain, bge | {"hard_negative": None}).pairs
    assert [list(pairs[name]) for name in ("document", "hard_negatives")] == [
        [GOOD["document"], "셋"], [[GOOD["hard_negative"]], []]]  # fmt: skip


def test_a_folder_is_no_file_of_rows(tmp_path):
    with pytest.raises(RowError, match="found a folder; expected its files of rows"):
        load_triplets([str(tmp_path)])


def test_ids_are_kept_and_make_no_pair_another(rows):
    found = rows(GOOD | {"id": 0}, GOOD | {"id": "둘"})
    assert (list(found.pairs["id"]), found.counts["duplicates"]) == (["0"], 1)
    assert found.fingerprint == rows(GOOD).fingerprint


CHANGES = [{"query": "둘"}, {"document": "둘"}, {"hard_negative": None}, {"source": "민법"}, {"document_score": 1},
           {"hard_negative_score": 1}]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=[next(iter(change)) for change in CHANGES])
def test_the_fingerprint_sees_every_column(rows, change):
    assert rows(GOOD).fingerprint != rows(GOOD | change, name="changed.jsonl").fingerprint


def test_the_fingerprint_sees_order(rows):
    one, two = GOOD, GOOD | {"query": "둘"}
    assert rows(one, two).fingerprint != rows(two, one, name="turned.jsonl").fingerprint


def test_parquet_has_the_fingerprint_of_its_jsonl(rows, tmp_path):
    table = [
        GOOD | {"hard_negative": [NEGATIVE, "야근"], "hard_negative_score": [1.0, 2.0], "source": "민법"},
        {"query": "둘", "document": DOCUMENT, "hard_negative": None, "hard_negative_score": None, "source": None},
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
    parquet, lines = load_triplets([str(tmp_path / "rows.parquet")]), rows(*table)
    assert parquet.fingerprint == lines.fingerprint and parquet.counts == lines.counts


def test_parquet_text_that_is_no_utf8_is_refused(tmp_path):
    broken = pa.array([b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"query": broken, "document": ["가"]}), tmp_path / "rows.parquet")
    with pytest.raises(RowError, match=r"rows\.parquet: found unreadable data \('utf-8' codec"):
        load_triplets([str(tmp_path / "rows.parquet")])


def test_a_bad_parquet_row_is_named_by_its_number(tmp_path):
    pq.write_table(pa.Table.from_pylist([GOOD, GOOD | {"document": " "}]), tmp_path / "rows.parquet")
    with pytest.raises(RowError, match=r"rows\.parquet, row 2, field document: found an empty text; expected a text"):
        load_triplets([str(tmp_path / "rows.parquet")])


def test_files_are_read_in_the_order_given(rows, tmp_path):
    rows(GOOD, name="가.jsonl"), rows(GOOD | {"query": "둘"}, name="나.jsonl")
    paths = [str(tmp_path / name) for name in ("나.jsonl", "가.jsonl")]
    assert load_triplets(paths).pairs["query"][:] == ["둘", QUERY]
    assert load_triplets(paths[::-1]).pairs["query"][:] == [QUERY, "둘"]


def test_a_second_load_reads_the_cache(rows, cache):
    first = rows(GOOD)
    files = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert sorted(file.suffix for file in files) == [".arrow", ".json"]
    second = rows(GOOD, name="renamed.jsonl")
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == files
    assert second.fingerprint == first.fingerprint and second.counts == first.counts
    assert second.pairs[0] == first.pairs[0]


def test_a_changed_file_is_read_anew(rows):
    assert rows(GOOD).pairs[0]["query"] == QUERY
    assert rows(GOOD | {"query": "바뀐 질문"}).pairs[0]["query"] == "바뀐 질문"


def test_the_demo_is_840_pairs():
    demo = load_triplets(["demo"])
    assert demo.counts["rows"] == demo.counts["pairs"] == len(demo.pairs) == 840
    assert demo.counts["duplicates"] == 0 and demo.counts["ignored_columns"] == []
    assert all(pair["hard_negatives"] for pair in demo.pairs)


def test_the_demo_and_a_file_go_together(rows, tmp_path):
    rows(GOOD)
    assert load_triplets(["demo", str(tmp_path / "rows.jsonl")]).counts["pairs"] == 841


def test_an_id_with_half_of_a_surrogate_pair_is_shown_by_its_number(rows):
    assert rows(raw=rb'{"query": "a", "document": "b", "id": "\ud800"}').pairs[0]["id"] == r"\ud800"


def test_check_row_names_the_place_it_is_given():
    with pytest.raises(RowError) as caught:
        check_row({"query": QUERY}, "말뭉치, row 3")
    assert caught.value.place == "말뭉치, row 3, field document"


# --- mistakes that are not yet said in one line ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        '{"query": "가", "document": "나", "source": "\\ud800"}',
        '{"query": "가", "document": "나", "document_score": 1' + "0" * 400 + "}",
        '{"query": "가", "document": "나", "document_score": 1' + "0" * 5000 + "}",
    ],
    ids=["surrogate in source", "score beyond float", "score beyond int"],
)
def test_what_cannot_be_stored_is_refused_with_its_line(refusal, line):
    assert ", line 1" in refusal(line)


@pytest.mark.parametrize("score", ["Infinity", "-Infinity", "1e999"])
def test_an_infinite_score_is_refused(refusal, score):
    line = f'{{"query": "가", "document": "나", "document_score": {score}}}'
    assert "field document_score" in refusal(line)


def test_a_damaged_gzip_is_refused(refusal):
    data = bytearray(gzip.compress(json.dumps(GOOD).encode() + b"\n"))
    data[10] = 0xFF  # the first byte after the header: no such kind of block
    assert "unreadable data" in refusal(name="rows.jsonl.gz", raw=bytes(data))


def test_the_ending_is_checked_even_when_the_content_is_cached(rows):
    rows(GOOD)
    with pytest.raises(RowError, match="found plain data; expected a gzip file"):
        rows(name="again.jsonl.gz", raw=(json.dumps(GOOD, ensure_ascii=False) + "\n").encode())


def test_rows_with_other_fields_are_told_what_they_have():
    with pytest.raises(RowError, match="^x: found the fields 질문, 답; expected query and document; prepare_data.py"):
        check_row({"질문": "연차는?", "답": "열닷새"}, "x")
