"""Every data file under a path, through folders, zip, split zip, tar and gzip, as streams; nothing is unpacked."""

import contextlib
import os
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from koir.errors import SourceError, nearest_beside
from koir.sources.streams import File, Gunzipped, bound, joiner, seekable

DATA = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".xlsx", ".parquet")
PART = re.compile(r"(.+\.zip)\.part(\d+)", re.IGNORECASE)
HIDDEN = (".", "~$", "__MACOSX")  # how names begin that systems, editors and office programs add
HANGUL = re.compile(r"[\u1100-\u11ff가-힣]")
DEPTH = 4  # archives within archives
BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError,
    UnicodeDecodeError,  # a name within a zip
)  # fmt: skip


def walk(path: Path) -> Iterator[File]:
    """Data files (and others, which a source ignores) in natural order; a File can be opened until the next is asked.

    Raises SourceError for a path that is not there, a broken archive, a missing part, a member whose name climbs out
    of its archive, or one that expands beyond what streams.py allows.
    """
    if not path.exists():
        raise SourceError(str(path), "no such file or folder", "a download" + nearest_beside(path))
    root = path if path.is_dir() else path.parent
    found = [(clean_name(str(p.relative_to(root))), p) for p in files_below(path)]
    above = clean_name("/".join(Path(os.path.abspath(root)).parts[1:][-2:]))
    yield from _each([File(name, _readable(str(p)), _opener(p), above) for name, p in found], 0)


def files_below(path: Path) -> list[Path]:
    """The files that a path stands for: itself, all parts of a split zip of which it is one, all below a folder.

    Links to folders are followed, each folder once; what is hidden is left out. Raises SourceError for a folder that
    may not be read.
    """
    part = PART.fullmatch(path.name)
    if part and path.is_file():
        return [p for p in path.parent.iterdir() if p.name.startswith(f"{part[1]}.part")]
    if not path.is_dir():
        return [path] if path.is_file() else []
    found, seen = [], set()
    for folder, below, names in os.walk(path, onerror=_refuse, followlinks=True):
        here = os.path.realpath(folder)
        if here in seen:
            below.clear()
            continue
        seen.add(here)
        below[:] = [name for name in below if not name.startswith(HIDDEN)]
        found += [file for name in names if not name.startswith(HIDDEN) and (file := Path(folder, name)).is_file()]
    return found


def _refuse(error: OSError) -> None:
    raise SourceError(str(error.filename), error.strerror, "a folder that may be read") from None


def clean_name(name: str) -> str:
    """A path as its maker wrote it: NFC, "/" between folders, `#Ud55c` (Hangul escaped by some unzip) undone."""
    name = _readable(name).replace("\\", "/")
    name = re.sub(r"#U([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), name)
    return unicodedata.normalize("NFC", name)


def _readable(name: str) -> str:
    """A name of bytes that are no UTF-8, which Python holds as surrogates: CP949, or with marks for what is neither."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raw = name.encode("utf-8", "surrogateescape")
        try:
            return raw.decode("cp949")
        except UnicodeDecodeError:
            return raw.decode("utf-8", "replace")
    return name


def natural(name: str) -> list:
    """A sort key under which part10 follows part9."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def unreadable(place: str, error: BaseException) -> SourceError:
    """The error to raise for one of BROKEN."""
    why = " ".join(str(error).split())[:120] or type(error).__name__
    if isinstance(error, NotImplementedError):  # Deflate64, which Windows takes for large files
        return SourceError(place, f"a zip that cannot be opened here ({why})", "the same unpacked, or zipped otherwise")
    return SourceError(place, f"unreadable data ({why})", "a whole, undamaged file; download it again")


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def _each(files: list[File], depth: int) -> Iterator[File]:
    """Open what holds files, join what was split; `files` are siblings."""
    whole, parts = [], {}
    for file in files:
        part = PART.fullmatch(file.name)
        if part:
            parts.setdefault(part[1], []).append((int(part[2]), file))
        else:
            whole.append(file)
    for name, numbered in parts.items():
        numbered.sort(key=lambda pair: pair[0])
        first = numbered[0][1]
        joined = File(
            name, re.sub(r"\.part\d+$", ".part*", first.place, flags=re.I), joiner(name, numbered), first.above
        )
        whole.append(joined)
    for file in sorted(whole, key=lambda file: natural(file.name)):
        yield from _opened(file, depth)


def _opened(file: File, depth: int) -> Iterator[File]:
    lower = file.name.lower()
    if not lower.endswith((".zip", ".tar", ".tgz", ".gz")):
        yield file
        return
    if depth >= DEPTH:
        raise SourceError(file.place, f"archives within archives, {depth} deep", f"at most {DEPTH}")
    if lower.endswith(".gz") and not lower.endswith(".tar.gz"):
        yield from _opened(File(file.name[:-3], file.place, lambda: Gunzipped(file), file.above), depth + 1)
        return
    try:
        stream = Gunzipped(file) if lower.endswith("gz") else file.open()
        with stream, seekable(stream, file.place) as archive:
            members = _zip_members if lower.endswith(".zip") else _tar_members
            yield from _each(members(file, archive), depth + 1)
    except BROKEN as error:
        raise unreadable(file.place, error) from None


# --- zip and tar -----------------------------------------------------------------------------------------------------


def _zip_members(file: File, stream: BinaryIO) -> list[File]:
    archive = zipfile.ZipFile(stream)
    files, total = [], 0
    for info in archive.infolist():
        name = _member_name(info.filename if info.flag_bits & 0x800 else _legacy(info.filename), file.place)
        place = f"{file.place}!{name}"
        if info.is_dir() or _hidden(name):
            continue
        if info.flag_bits & 1:
            raise SourceError(place, "an encrypted member", "one that opens without a password")
        total += info.file_size
        bound(place, info.file_size, info.compress_size, total, len(files))
        files.append(File(f"{file.name}/{name}", place, lambda info=info: archive.open(info), file.above))
    return files


def _tar_members(file: File, stream: BinaryIO) -> list[File]:
    archive = tarfile.TarFile(fileobj=stream)
    files, total = [], 0
    for info in archive:
        name = _member_name(info.name, file.place)
        if info.isfile() and not _hidden(name):  # links and devices hold no rows
            total += info.size
            bound(f"{file.place}!{name}", info.size, info.size, total, len(files))
            opener = lambda info=info: archive.extractfile(info)  # noqa: E731
            files.append(File(f"{file.name}/{name}", f"{file.place}!{name}", opener, file.above))
    return files


def _hidden(name: str) -> bool:
    return any(part.startswith(HIDDEN) and part != "." for part in name.split("/"))


def _legacy(name: str) -> str:
    """A zip name without the UTF-8 flag was read as cp437: its bytes are UTF-8 (macOS) or CP949 (Korean Windows).

    Where they might be both, Hangul decides.
    """
    readings = []
    for encoding in ("utf-8", "cp949"):
        with contextlib.suppress(UnicodeError):
            readings.append(name.encode("cp437").decode(encoding))
    return next((reading for reading in readings if HANGUL.search(reading)), (readings or [name])[0])


def _member_name(name: str, place: str) -> str:
    cleaned = clean_name(name)
    if cleaned.startswith("/") or re.match(r"[A-Za-z]:", cleaned) or ".." in cleaned.split("/"):
        raise SourceError(place, f"a member that climbs out of the archive ({cleaned!r})", "names below the archive")
    return cleaned
