"""Where rows come from: JSONL and Parquet files and datasets of the hub, each row with its place for errors."""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from koir.errors import RowError, UserError, nearest_beside


def is_hub_name(source: str, file: Path) -> bool:
    """Whether `source`, of which `file` is the path, can only be a dataset's name on the hub."""
    return (
        source != "demo"
        and not file.exists()
        and not file.parent.is_dir()  # a mistyped file, as of models
        and re.fullmatch(r"[\w.-]+/[\w.-]+", source, re.ASCII) is not None
        and not source.endswith((".jsonl", ".gz", ".json", ".parquet"))
    )


def source_key(source: str, file: Path) -> bytes:
    """What changes when the source's content does. Raises RowError, with the nearest name, where there is no file."""
    if is_hub_name(source, file):
        return hub_revision(source).encode()
    if not file.is_file():
        if file.is_dir():
            raise RowError(f"--train_data {source}", "a folder", f"its files of rows, such as {source}/*.jsonl.gz")
        raise RowError(f"--train_data {source}", "no such file", "a file of rows" + nearest_beside(file))
    with file.open("rb") as stream:
        ending = "".join(file.suffixes[-2:]).lower()  # decides how the bytes are read
        return hashlib.file_digest(stream, "sha256").digest() + ending.encode()


def file_records(file: Path) -> Iterator[tuple[object, str]]:
    """Raw rows of one file with their places. Raises RowError for what is not as the ending says, or cannot be read."""
    name = file.name.lower()
    with file.open("rb") as stream:
        magic = stream.read(4)
    kinds = {b"PAR1": "a Parquet file", b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a zip file"}
    found = next((kind for start, kind in kinds.items() if magic.startswith(start)), "plain data")
    wanted = {".parquet": "a Parquet file", ".jsonl.gz": "a gzip file", ".jsonl": "plain data"}
    expected = next((kind for ending, kind in wanted.items() if name.endswith(ending)), None)
    if expected is None:
        table = name.endswith((".csv", ".tsv", ".xlsx"))
        made = f"; prepare_data.py --source csv={file} --output_dir DIR makes rows of a table" if table else ""
        raise RowError(str(file), "an unknown ending", f"a name that ends in .jsonl, .jsonl.gz or .parquet{made}")
    if magic and found != expected:
        raise RowError(str(file), found, f"{expected}, as the ending says")
    yield from _parquet_records(file) if name.endswith(".parquet") else _json_records(file, name.endswith(".gz"))


def _json_records(file: Path, gzipped: bool) -> Iterator[tuple[object, str]]:
    number, blank = 0, None
    try:
        with gzip.open(file) if gzipped else file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                place = f"{file}, line {number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{line[error.start]:02x} at position {error.start}"
                    raise RowError(place, byte, "UTF-8 text" + _from_cp949(line)) from None
                if not text.strip():
                    blank = blank or place
                    continue
                if blank:  # at a file's end it does no harm
                    raise RowError(blank, "an empty line", "a JSON object")
                try:
                    yield json.loads(text), place
                except (ValueError, RecursionError) as error:  # ValueError: also integers too long to read
                    raise RowError(place, f"broken JSON ({error})", "one JSON object a line") from None
    except (zlib.error, EOFError, OSError) as error:
        raise RowError(f"{file}, after line {number}", f"unreadable data ({error})", "a complete file") from None


def _from_cp949(line: bytes) -> str:
    try:
        line.decode("cp949")
    except UnicodeDecodeError:
        return ""
    return " (this is CP949: iconv -f cp949 -t utf-8 OLD > NEW)"


def _parquet_records(file: Path) -> Iterator[tuple[object, str]]:
    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield row, f"{file}, row {number}"
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RowError(str(file), f"unreadable data ({error})", "a complete Parquet file") from None


def hub_revision(name: str, flag: str = "--train_data") -> str:
    """The commit that a hub dataset's name stands for now. Raises RowError, naming `flag`, when the hub is silent."""
    from huggingface_hub import HfApi

    try:
        return f"{name}@{HfApi().dataset_info(name, timeout=20).sha}"
    except Exception as error:  # the hub client raises many kinds; all mean the same here
        raise _unreachable(name, flag, error) from None


def hub_records(name: str, flag: str = "--train_data") -> Iterator[tuple[object, str]]:
    """Raw rows of a hub dataset's train split with their places, streamed. Raises RowError, naming `flag`."""
    try:
        for number, row in enumerate(datasets.load_dataset(name, split="train", streaming=True), 1):
            yield row, f"{name}, row {number}"
    except UserError:
        raise
    except Exception as error:
        raise _unreachable(name, flag, error) from None


def _unreachable(name: str, flag: str, error: Exception) -> RowError:
    said = " ".join(str(error).split())[:120]
    why = f"{'' if flag == '--hub' else 'no file here, and '}nothing from the hub ({type(error).__name__}: {said})"
    return RowError(f"{flag} {name}", why, "a reachable hub, or a local copy of its files")
