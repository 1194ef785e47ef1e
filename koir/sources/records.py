"""Records of one data file, streamed: JSON, JSON Lines, CSV, TSV, Excel and Parquet, in the encodings met in Korea."""

import codecs
import contextlib
import csv
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl.utils.escape import unescape

from koir.errors import SourceError
from koir.sources.archives import BROKEN, unreadable, walk
from koir.sources.json_text import json_records
from koir.sources.streams import File, bound, seekable
from koir.sources.tally import Tally, split_of

CHUNK = 2**20  # bytes read at once
TITLES = 8  # lines above a table's header, blank ones too
BEHIND = re.compile(r'"[ \x1a]+(?=,|\s*$)')  # a quote, blanks (or DOS's end of a file) and the cell's end
QUOTED = re.compile(r'"(?=.*"")((?:[^"]|"")*)"', re.DOTALL)  # as CSV quotes a cell that has quotes
csv.field_size_limit(2**27)


def records(file: File, tally: Tally, header: bool = True, quoted: bool | None = None) -> Iterator[tuple[dict, str]]:
    """Each record of a file with its place (file and row, counted from 1 without the header).

    JSON: as `json_records` finds them. Tables, of which an Excel file has one a sheet: header names (NFC) to texts;
    without a header the keys are "0", "1", ... quoted: whether '"' quotes cells (default: in .csv alone; elsewhere a
    cell alone whose own quotes are doubled loses the outer ones). A table's line with another number of cells than the
    first is dropped and counted. Raises SourceError naming file and row for what cannot be read.
    """
    kind = file.name.rpartition(".")[2].lower()
    place, number = file.place, 0
    try:
        with file.open() as raw, seekable(raw, place) if kind in ("xlsx", "parquet") else raw as stream:
            if kind == "xlsx":
                found = (
                    (name, _table(sheet, name, tally, header, True)) for name, sheet in _sheets(stream, file.place)
                )
            elif kind == "parquet":
                found = [(place, _parquet(stream))]
            elif kind in ("csv", "tsv", "txt"):
                quoted = kind == "csv" if quoted is None else quoted
                found = [(place, _table(_cells(stream, place, kind, quoted), place, tally, header))]
            else:
                found = [(place, json_records(_ended(decoded(stream, place)), place))]
            for place, part in found:
                for number, record in enumerate(part, 1):
                    if record is not None:
                        yield record, f"{place}, row {number}"
    except (*BROKEN, pa.ArrowException, csv.Error, ElementTree.ParseError, KeyError) as error:
        raise unreadable(f"{place}, after row {number}", error) from None


def decoded(stream: BinaryIO, place: str) -> Iterator[str]:
    """The text of a stream in pieces: UTF-8 or UTF-16 by its mark, else UTF-8, else CP949 (decided at the first
    character beyond ASCII). Raises SourceError where neither fits."""
    block = stream.read(CHUNK)
    utf16 = block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if utf16 else "utf-8-sig"
    decoder, ascii_so_far, position, line = codecs.getincrementaldecoder(encoding)(), True, 0, 1
    while True:
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            try:
                if not block:
                    raise SourceError(place, "a file that ends within a character", "a whole file") from None
                if not ascii_so_far or encoding != "utf-8-sig":
                    raise error
                encoding, decoder = "cp949", codecs.getincrementaldecoder("cp949")()
                text = decoder.decode(error.object)  # with what the last block left over
            except UnicodeDecodeError as again:
                start = max(error.start, again.start)  # where the better of both readings ended
                before = position + len(block) - len(error.object)
                at = f"{place}, line {line + error.object[:start].count(10):,}"
                found = f"byte 0x{error.object[start]:02x} at {before + start:,}"
                raise SourceError(at, found, "UTF-8 or CP949 text") from None
        ascii_so_far = ascii_so_far and text.isascii()
        line += text.count("\n")
        position += len(block)
        if text:
            yield text
        if not block:
            return
        block = stream.read(CHUNK)


def _ended(pieces: Iterator[str]) -> Iterator[str]:
    """Without the mark that DOS and some exports put behind a file's end."""
    for piece in pieces:
        yield piece.rstrip("\x1a\0")


# --- tables ----------------------------------------------------------------------------------------------------------


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    """Lines that end in "\\n", or in "\\r" where the first piece has no other line end (old Macs)."""
    rest, end = "", None
    for piece in pieces:
        end = end or ("\n" if "\n" in piece or "\r" not in piece[:-1] else "\r")
        lines = (rest + piece).split(end)
        rest = lines.pop()
        yield from (line + "\n" for line in lines)
    if rest:
        yield rest


def _cells(stream: BinaryIO, place: str, kind: str, quoted: bool) -> Iterator[list[str]]:
    lines: list[str] = []  # of the row that is read

    def noted() -> Iterator[str]:
        for line in _lines(decoded(stream, place)):
            lines.append(line)
            yield line

    comma, before, source = kind == "csv", 0, noted()
    form = {"delimiter": "," if comma else "\t", "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
    reader = csv.reader(source, strict=True, **form)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            row = _mended(lines, form, error, f"{place}, line {before + 1:,}")
            reader = csv.reader(source, strict=True, **form)
        if row is None:
            return
        before += len(lines)
        lines.clear()
        yield row if quoted else [_unquoted(cell) for cell in row]


def _mended(lines: list[str], form: dict, error: csv.Error, place: str) -> list[str]:
    """The cells of a row whose quotes do not close as they should, where only one reading is left.

    Between tabs they are the text's own; between commas blanks behind a closing quote are nothing. Raises SourceError
    for a quote that swallows lines, or a part of a cell, and the error itself where it is of something else.
    """
    cut = "unexpected end" in str(error)
    if not cut and "expected after" not in str(error):
        raise error
    if len(lines) == 1 and form["delimiter"] == "\t":
        return lines[0].rstrip("\r\n").split("\t")
    if len(lines) == 1 and not cut:
        with contextlib.suppress(csv.Error):
            (row,) = csv.reader([BEHIND.sub('"', lines[0])], strict=True, **form)
            return row
    found = "a quote that is not closed" if cut else "a quote within a cell"
    found = found if len(lines) == 1 else f"a quote that opens here and takes in {len(lines):,} lines"
    raise SourceError(place, found, "each cell's \" closed, and doubled within the cell") from None


def _unquoted(cell: str) -> str:
    """A cell that was quoted since it has quotes, which are doubled; any other as it is."""
    quoted = QUOTED.fullmatch(cell)
    return quoted[1].replace('""', '"') if quoted else cell


def _sheets(stream: BinaryIO, place: str) -> Iterator[tuple[str, Iterator[list[str]]]]:
    """The place and the cells of each sheet of an Excel file that has any."""
    archive = zipfile.ZipFile(stream)
    total = 0
    for info in archive.infolist():
        total += info.file_size
        bound(place, info.file_size, info.compress_size, total, 0)
    with _as_excel_writes(place):
        sheets = openpyxl.load_workbook(stream, read_only=True, data_only=True).worksheets
    for sheet in sheets:
        name = place if len(sheets) == 1 else f"{place}, sheet {sheet.title}"
        yield name, _sheet_cells(sheet, name)


def _sheet_cells(sheet: object, place: str) -> Iterator[list[str]]:
    sheet.reset_dimensions()  # some writers state A1
    rows = sheet.iter_rows(values_only=True)
    while True:
        with _as_excel_writes(place):
            row = next(rows, None)
        if row is None:
            return
        yield ["" if cell is None else unescape(str(cell)) for cell in row]


@contextlib.contextmanager
def _as_excel_writes(place: str) -> Iterator[None]:
    """What openpyxl finds odd in a workbook that is a zip of XML becomes a SourceError."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        why = " ".join(str(error).split())[:120]
        raise SourceError(place, f"an odd workbook ({why})", "one that Excel saved anew, or a .csv file") from None


def _table(
    rows: Iterator[list[str]], place: str, tally: Tally, header: bool, ragged: bool = False
) -> Iterator[dict | None]:
    """ragged: empty cells at a line's end may be missing, or too many."""
    names: list[str] | None = None
    number = 0  # as `records` counts what is yielded
    for row in _below_title(rows, tally) if header else rows:
        number += names is not None
        if not any(cell.strip() for cell in row):
            if names is not None:
                yield None
            continue
        if ragged:
            row = row[: max(i for i, cell in enumerate(row, 1) if cell.strip())]
            row += [""] * (len(names or row) - len(row))
        if names is None:
            names = _distinct(row) if header else [str(i) for i in range(len(row))]
            if header:
                continue
            number = 1
        if len(row) != len(names):
            tally.drop("a line with too many or too few cells", f"{place}, row {number}")
            yield None
            continue
        yield dict(zip(names, (cell.strip() for cell in row), strict=True))


def _below_title(rows: Iterator[list[str]], tally: Tally) -> Iterator[list[str]]:
    """Rows from the header on: lines of one cell before the first with several are titles, and noted as such."""
    held: list[list[str]] = []
    for row in rows:
        if sum(bool(cell.strip()) for cell in row) > 1:
            if any(map("".join, held)):
                tally.notes["title lines above the header"] += 1
            yield row
            break
        held.append(row)
        if len(held) > TITLES:  # a table of one column
            yield from held
            break
    else:
        yield from held
    yield from rows


def _distinct(header: list[str]) -> list[str]:
    """Header names, NFC; a name that is there again gets ".2", ".3"."""
    names: list[str] = []
    for cell in header:
        name = unicodedata.normalize("NFC", cell.strip())
        before = sum(known.partition("\0")[0] == name for known in names)
        names.append(f"{name}\0{before + 1}" if before else name)
    return [name.replace("\0", ".") for name in names]


def _parquet(stream: BinaryIO) -> Iterator[dict]:
    for batch in pq.ParquetFile(stream).iter_batches(1024):
        yield from batch.to_pylist()


def converted(
    path: Path, tally: Tally, wanted: str, convert: Callable[[dict, str, Tally], Iterator[dict]], **reading: bool
) -> Iterator[tuple[dict, str]]:
    """(row, place) of every record of the files below `path` whose name's end matches `wanted`, a regular expression.

    reading: header and quoted, as `records` takes them. A record without a field that `convert` needs, or with one of
    another type, is a SourceError with file and row.
    """
    for file in walk(path):
        names = [file.name]
        if "/" not in file.name:  # the folder that tells may be the one that was named
            names.append(f"{file.above}/{file.name}")
        if not any(re.search(f"(?:{wanted})$", name, re.IGNORECASE) for name in names):
            tally.ignored.append(file.name)
            continue
        split = split_of(file.name, file.above)
        if not tally.opens(file.name, split):
            continue
        for record, place in records(file, tally, **reading):
            tally.records[split] += 1
            try:
                for row in convert(record, place, tally):
                    yield row, place
            except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                why = f"no field {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
                raise SourceError(place, why[:160], "the shape that this source documents (--list)") from None
