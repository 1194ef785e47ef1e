"""Gzip and split files as streams, read only as far as their size allows."""

import gzip
import io
import re
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from koir.errors import SourceError

MEMBERS = 1_000_000  # of one archive
RATIO = 200  # expanded to compressed; text in JSON stays below 30
FREE = 2**24  # bytes that may expand at any ratio
EXPANDED = 2**37  # bytes of one archive's data files (128 GiB); the largest release known is a tenth of it


@dataclass(frozen=True)
class File:
    """One data file. name: its path below what the user named, NFC, with "/"; place: what errors call it.

    above: the two folders over that, which may tell what the name does not.
    """

    name: str
    place: str
    open: Callable[[], BinaryIO]
    above: str = ""


def bound(place: str, expanded: int, compressed: int, total: int, members: int) -> None:
    """Raise SourceError for a member that expands too much, or an archive of too much (bytes, members so far)."""
    if expanded > max(FREE, RATIO * compressed):
        raise SourceError(place, f"{expanded:,} bytes out of {compressed:,}", f"no zip bomb: at most {RATIO} times")
    if total > EXPANDED or members >= MEMBERS:
        raise SourceError(place, f"{members:,} members, {total:,} bytes", f"at most {MEMBERS:,}, {EXPANDED:,} bytes")


def seekable(stream: BinaryIO, place: str) -> BinaryIO:
    """The stream itself where jumping about in it is cheap, else a copy in an unnamed temporary file."""
    if not isinstance(stream, (Gunzipped, zipfile.ZipExtFile)):
        return stream
    copy, total = tempfile.TemporaryFile(), 0  # noqa: SIM115 (the caller closes it)
    while block := stream.read(2**20):
        total += len(block)
        bound(place, 0, 0, total, 0)
        copy.write(block)
    copy.seek(0)
    return copy


class Gunzipped(io.BufferedReader):
    """What a gzip file holds. Reading raises SourceError where it expands beyond RATIO or EXPANDED."""

    def __init__(self, file: File):
        super().__init__(_Inflating(file), 2**20)


class _Inflating(io.RawIOBase):
    def __init__(self, file: File):
        self.packed, self.place, self.total = file.open(), file.place, 0
        self.stream = gzip.GzipFile(fileobj=self.packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        block = self.stream.read(len(buffer))
        buffer[: len(block)] = block
        self.total += len(block)
        if self.total > FREE:
            bound(self.place, self.total, self.packed.tell(), self.total, 0)
        return len(block)

    def close(self) -> None:
        self.stream.close()
        self.packed.close()
        super().close()


def joiner(name: str, numbered: list[tuple[int, File]]) -> Callable[[], BinaryIO]:
    """Opens a split file's parts, by number, as the one that they were."""
    return lambda: io.BufferedReader(_Joined(name, numbered), 2**20)


class _Joined(io.RawIOBase):
    """The parts of a split file as one; parts are numbered 0, 1, 2, or 1, 2, 3, or by the byte they begin at.

    Raises SourceError when a number is missing. (A missing last part shows as a zip without its directory.)
    """

    def __init__(self, name: str, numbered: list[tuple[int, File]]):
        self.streams = [file.open() for _, file in numbered]
        sizes = [stream.seek(0, io.SEEK_END) for stream in self.streams]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self.position = 0
        numbers = [number for number, _ in numbered]
        if numbers not in (list(range(len(numbers))), list(range(1, len(numbers) + 1)), self.starts[:-1]):
            found = ", ".join(map(str, numbers[:8]))
            place = re.sub(r"\.part\d+$", ".part*", numbered[0][1].place, flags=re.I)
            raise SourceError(place, f"parts {found} of {name}", "every part: 0, 1, 2, ... without a gap")
        self.streams[0].seek(0)
        if self.streams[0].read(2) != b"PK":
            raise SourceError(numbered[0][1].place, "no beginning of a zip", "the first part, and all that follow")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.starts[-1]}[whence]
        return self.position

    def readinto(self, buffer) -> int:
        for stream, start, end in zip(self.streams, self.starts, self.starts[1:], strict=False):
            if start <= self.position < end:
                stream.seek(self.position - start)
                block = stream.read(min(len(buffer), end - self.position))
                buffer[: len(block)] = block
                self.position += len(block)
                return len(block)
        return 0

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        super().close()
