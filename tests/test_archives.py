"""Downloads as they come, and damaged: every file is found, or an error names file and row."""

import gzip
import io
import json
import os
import tarfile
import unicodedata
import zipfile

import pytest

from koir.errors import SourceError
from koir.sources import archives, records, streams
from koir.sources.archives import _legacy, clean_name, walk
from koir.sources.json_text import json_records
from koir.sources.records import decoded
from koir.sources.registry import checked_rows, find
from koir.sources.streams import File
from koir.sources.tally import Tally

NAME = "KorQuAD_v1.0_train.json"
TEXT = "한빛시는 3월부터 무료 버스를 운행한다. 대상은 70세 이상 주민이다."
ASKED = {"id": "1", "question": "대상은?", "answers": [{"text": "70세", "answer_start": TEXT.index("70세")}]}
DATA = {"version": "1", "data": [{"title": "버스", "paragraphs": [{"context": TEXT, "qas": [ASKED]}]}]}
JSON = json.dumps(DATA, ensure_ascii=False).encode()
ROWS = [{"query": "대상은?", "document": TEXT, "source": "korquad-1.0", "id": "1"}]


def rows(path, name="korquad"):
    return list(checked_rows(find(name), path, Tally()))


def zipped(*members, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members or [(NAME, JSON)]:
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members or [(NAME, JSON)]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def parts(packed, count=3, name="pack.zip"):
    size = -(-len(packed) // count)
    return [(f"{name}.part{i}", packed[i * size : (i + 1) * size]) for i in range(count)]


def laid(folder, *files):
    for name, content in files:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


PACKS = {
    "a folder": [(f"1.Training/{NAME}", JSON)],
    "gzip": [(f"{NAME}.gz", gzip.compress(JSON))],
    "zip": [("pack.zip", zipped())],
    "stored zip": [("pack.zip", zipped(method=zipfile.ZIP_STORED))],
    "zip in zip": [("pack.zip", zipped(("inner.zip", zipped())))],
    "gzip in zip": [("pack.zip", zipped((f"{NAME}.gz", gzip.compress(JSON))))],
    "split zip": parts(zipped()),
    "split zip from 1": [(f"pack.zip.part{i + 1}", piece) for i, (_, piece) in enumerate(parts(zipped()))],
    "split zip by offset": [
        (f"pack.zip.part{sum(len(p) for _, p in parts(zipped())[:i])}", piece)
        for i, (_, piece) in enumerate(parts(zipped()))
    ],
    "twelve parts, in natural order": parts(zipped(), 12),
    "tar": [("pack.tar", tarred())],
    "tar.gz": [("pack.tar.gz", gzip.compress(tarred()))],
    "tgz": [("pack.tgz", gzip.compress(tarred()))],
    "zip in tar": [("download.tar", tarred(("016.행정/TL.zip", zipped())))],
    "split zip in tar": [("download.tar", tarred(*parts(zipped())))],
    "split zip in tar.gz": [("download.tar.gz", gzip.compress(tarred(*parts(zipped()))))],
    "macOS extras": [(NAME, JSON), (f"__MACOSX/._{NAME}", b"\0\1"), (f"._{NAME}", b"\0\1"), (".DS_Store", b"\0")],
    "a notebook's copies and Office's locks": [(NAME, JSON), (f".copies/{NAME}", JSON), ("~$a.json", b"\0")],
    "hidden in a zip": [("pack.zip", zipped((f"./{NAME}", JSON), (f".copies/{NAME}", JSON), ("~$a.json", b"\0")))],
    "from here in a tar": [("pack.tar", tarred((f"./{NAME}", JSON), (f"./.copies/{NAME}", JSON)))],
    "circled numbers": [(f"①2024/{NAME}", JSON), ("2024/메모.md", b"")],
    "names in CP949": [(f"\udcb1\udcdb/{NAME}", JSON)],
}


@pytest.mark.parametrize("name", ["책", "청구 표", "도서", "TL_a"])
@pytest.mark.parametrize("encoding", ["cp949", "utf-8"])
def test_zip_names_of_old_programs_are_read_as_hangul(name, encoding):
    """Without the flag for UTF-8 a name is bytes; those of 책 in CP949 are sound UTF-8 too."""
    assert _legacy(name.encode(encoding).decode("cp437")) == name


@pytest.mark.parametrize("pack", PACKS)
def test_every_packing_gives_the_same_rows(pack, tmp_path):
    before = {path for path in tmp_path.parent.iterdir()}
    assert rows(laid(tmp_path, *PACKS[pack])) == ROWS
    assert {path for path in tmp_path.parent.iterdir()} == before, "nothing is unpacked beside it"


def test_one_part_or_one_file_named_stands_for_the_whole(tmp_path):
    laid(tmp_path, *parts(zipped()), (NAME, JSON))
    assert rows(tmp_path / "pack.zip.part1") == rows(tmp_path / NAME) == ROWS


def test_links_to_folders_are_followed_once(tmp_path):
    laid(tmp_path / "elsewhere", (NAME, JSON))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw/again").symlink_to(tmp_path / "raw")
    assert rows(tmp_path / "raw") == ROWS


def test_names_of_other_systems(tmp_path):
    windows = zipped(("ABCDEFGH.json", b"{}")).replace(b"ABCDEFGH", "한글이름".encode("cp949"))
    (file,) = walk(laid(tmp_path / "w", ("pack.zip", windows)) / "pack.zip")
    assert file.name == "pack.zip/한글이름.json"
    apple = zipped(("ABCDEFGHIJKL.json", b"{}")).replace(b"ABCDEFGHIJKL", "한글이름".encode())
    (file,) = walk(laid(tmp_path / "a", ("pack.zip", apple)) / "pack.zip")
    assert file.name == "pack.zip/한글이름.json"
    named = laid(tmp_path / "t", (os.fsdecode("질문.csv".encode("cp949")), b""))
    (file,) = walk(named)
    assert (file.name, file.place) == ("질문.csv", f"{named}/질문.csv")
    assert clean_name("1.#Ud034#Uc988QA Datasets") == "1.퀴즈QA Datasets"
    assert clean_name(unicodedata.normalize("NFD", "단문질문")) == "단문질문"


def test_what_is_named_is_read_even_if_it_is_hidden(tmp_path):
    laid(tmp_path, (f".{NAME}", JSON), (f".folder/{NAME}", JSON))
    assert rows(tmp_path / f".{NAME}") == rows(tmp_path / ".folder") == ROWS


# --- damage ----------------------------------------------------------------------------------------------------------


def refused(path, message, name="korquad"):
    with pytest.raises(SourceError, match=message) as error:
        rows(path, name)
    assert str(path).partition(".part")[0] in str(error.value)


def test_a_path_that_is_not_there(tmp_path):
    laid(tmp_path, ("korquad.zip", zipped()))
    refused(tmp_path / "korqad.zip", r"no such file or folder.*did you mean korquad.zip\?")


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.98])
def test_a_truncated_zip(keep, tmp_path):
    whole = zipped()
    laid(tmp_path, ("pack.zip", whole[: int(len(whole) * keep)]))
    refused(tmp_path / "pack.zip", "unreadable data")


def test_a_zip_with_a_broken_member_names_it_and_the_row(tmp_path):
    broken = bytearray(zipped(method=zipfile.ZIP_STORED))
    broken[broken.index("버스".encode())] ^= 1
    laid(tmp_path, ("pack.zip", bytes(broken)))
    refused(tmp_path / "pack.zip", rf"{NAME}, after row \d")


def test_a_truncated_gzip_names_the_row(tmp_path):
    many = "".join(json.dumps({"query": f"질문 {i}", "document": TEXT}) + "\n" for i in range(2000)).encode()
    laid(tmp_path, ("rows.jsonl.gz", gzip.compress(many)[:-2000]))
    refused(tmp_path / "rows.jsonl.gz", r"after row \d+: found unreadable data", "triplets")


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_of_a_split_zip(missing, tmp_path):
    pieces = parts(zipped())
    del pieces[missing]
    laid(tmp_path, *pieces)
    message = [r"no beginning of a zip.*the first part", r"parts 0, 2 of pack.zip.*every part", "unreadable data"]
    refused(tmp_path, message[missing])


def test_an_encrypted_zip(tmp_path):
    packed = bytearray(zipped())
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        packed[packed.index(start) + offset] |= 1
    laid(tmp_path, ("pack.zip", bytes(packed)))
    refused(tmp_path / "pack.zip", "an encrypted member")


@pytest.mark.parametrize(
    "name", ["../evil.json", "a/../../evil.json", "/etc/evil.json", "C:/evil.json", "..\\evil.json"]
)
def test_a_member_that_climbs_out(name, tmp_path):
    laid(tmp_path, ("pack.zip", zipped((NAME, JSON), (name, b"{}"))), ("pack.tar", tarred((NAME, JSON), (name, b"{}"))))
    refused(tmp_path / "pack.zip", "climbs out of the archive")
    refused(tmp_path / "pack.tar", "climbs out of the archive")


def test_bombs(tmp_path, monkeypatch):
    bomb = b"[" + b" " * streams.FREE
    laid(tmp_path, ("pack.zip", zipped((NAME, bomb))), (f"{NAME}.gz", gzip.compress(bomb * 2)))
    laid(tmp_path, ("pack.tgz", gzip.compress(tarred((NAME, bomb * 2)))))
    refused(tmp_path / "pack.zip", "no zip bomb: at most 200 times")
    refused(tmp_path / f"{NAME}.gz", "no zip bomb")
    refused(tmp_path / "pack.tgz", "no zip bomb")
    nested = zipped()
    for _ in range(archives.DEPTH):
        nested = zipped(("inner.zip", nested))
    laid(tmp_path, ("deep.zip", nested))
    refused(tmp_path / "deep.zip", "archives within archives, 4 deep")
    monkeypatch.setattr(streams, "EXPANDED", 100)
    refused(laid(tmp_path, ("big.zip", zipped())) / "big.zip", "at most 1,000,000, 100 bytes")


def test_broken_json_names_the_row_before(tmp_path):
    laid(tmp_path, (NAME, JSON[:-1] + b" , oops"), ("b/" + NAME, JSON[: JSON.index(b"question")]), ("c/" + NAME, b""))
    refused(tmp_path / NAME, "after row 1: found broken JSON")
    refused(tmp_path / "b" / NAME, "after row 0: found broken JSON")
    refused(tmp_path / "c" / NAME, "an empty file")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    laid(tmp_path, (NAME, JSON), (f"locked/{NAME}", JSON))
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match="locked: found Permission denied; expected a folder that may be read"):
        rows(tmp_path)


def test_a_file_that_is_not_what_its_ending_says(tmp_path):
    laid(
        tmp_path,
        ("a.xlsx", b"no zip"),
        ("b.parquet", b"no parquet"),
        ("c.json", b"PK\3\4\xff\xff"),
        ("d.tar", b"x" * 999),
    )
    refused(tmp_path / "a.xlsx", "unreadable data", "csv")
    refused(tmp_path / "b.parquet", "unreadable data", "triplets")
    refused(tmp_path / "c.json", "UTF-8 or CP949|broken JSON", "triplets")
    refused(tmp_path / "d.tar", "unreadable data", "triplets")


# --- encodings -------------------------------------------------------------------------------------------------------

CSV = f"질문,문서\r\n대상은?,{TEXT}\r\n"
ENCODED = {
    "UTF-8": CSV.encode(),
    "UTF-8 with a mark": CSV.encode("utf-8-sig"),
    "UTF-16": CSV.encode("utf-16"),
    "CP949": CSV.encode("cp949"),
    "NFD": unicodedata.normalize("NFD", CSV).encode(),
    "LF": CSV.replace("\r", "").encode(),
    "a blank line": CSV.replace("\r\n", "\r\n\r\n").encode(),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_encodings(encoding, tmp_path):
    laid(tmp_path, ("rows.csv", ENCODED[encoding]))
    assert rows(tmp_path, "csv") == [{"query": "대상은?", "document": TEXT, "source": "csv"}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp949", "utf-16"])
def test_json_encodings(encoding, tmp_path):
    laid(tmp_path, (NAME, json.dumps(DATA, ensure_ascii=False).encode(encoding)))
    assert rows(tmp_path) == ROWS


def test_offsets_of_a_text_that_macos_took_apart(tmp_path):
    laid(tmp_path, (NAME, unicodedata.normalize("NFD", json.dumps(DATA, ensure_ascii=False)).encode()))
    assert rows(tmp_path) == ROWS


def test_the_place_of_a_broken_byte_is_that_of_the_reading_that_got_further():
    for encoding, good in (("cp949", "질문,답변\n"), ("utf-8", "질문,답변\n")):
        before = (good * 50).encode(encoding)
        with pytest.raises(SourceError, match=f"x, line 51: found byte 0xff at {len(before):,}"):
            list(decoded(io.BytesIO(before + b"\xff\xff"), "x"))


def test_neither_utf_8_nor_cp949_names_the_byte(tmp_path):
    laid(tmp_path, (NAME, JSON[:-2] + b"\xff\xfe" + JSON[-2:]))
    refused(tmp_path / NAME, r"byte 0xff at \d+")


def test_characters_cut_between_two_reads(monkeypatch):
    monkeypatch.setattr(records, "CHUNK", 5)
    for encoding in ("utf-8", "utf-8-sig", "cp949", "utf-16"):
        text = "abcdefgh 가나다 똠방각하" if encoding != "cp949" else "abcd 한글은 한국의 글자"
        assert "".join(decoded(io.BytesIO(text.encode(encoding)), "x")) == text


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_json_is_read_in_pieces(size):
    cases = {
        '[{"a": 1}, {"a": [2, "]}"]}]': [{"a": 1}, {"a": [2, "]}"]}],
        ' {"v": 12.5, "data": [{"a": 1}, {"b": {"data": []}}], "z": [1]} ': [{"a": 1}, {"b": {"data": []}}],
        '{"data": [], "id": 3}': [],
        '{"a": "\\u00e9"}\n{"a": 2}\r\n': [{"a": "é"}, {"a": 2}],
        "[]": [],
        "[1, 23]": [1, 23],
    }
    for text, found in cases.items():
        assert list(json_records((text[i : i + size] for i in range(0, len(text), size)), "x")) == found


def test_only_one_record_is_held_at_a_time():
    entry = json.dumps({"context": TEXT * 20}, ensure_ascii=False)
    produced, ahead = 0, []

    def pieces():
        nonlocal produced
        yield '{"data": ['
        for i in range(300):
            produced += 1
            yield entry + ("," if i < 299 else "]}")

    for number, _ in enumerate(json_records(pieces(), "x"), 1):
        ahead.append(produced - number)
    assert max(ahead) <= 3


def test_broken_json_is_told_before_the_rest_is_read():
    lines = ['{"a": None}\n', *['{"a": 1}\n'] * 1000]
    left = iter(lines)
    with pytest.raises(SourceError, match="after row 0: found broken JSON"):
        list(json_records(left, "x"))
    assert len([*left]) > 900


def test_duplicate_and_decomposed_column_names():
    table = unicodedata.normalize("NFD", "보기,보기,질문") + "\n가,나,다\n"
    file = File("a.csv", "a.csv", lambda: io.BytesIO(table.encode()))
    assert [r for r, _ in records.records(file, Tally())] == [{"보기": "가", "보기.2": "나", "질문": "다"}]
