"""Records of a JSON text of any length, of which only one is held at a time."""

import json
import re
from collections.abc import Iterator

from koir.errors import SourceError

TOKEN = 16  # characters: more than any but a string has, and than an escaped one within it
LISTS = ("data", "document", "Instances")  # keys of a JSON file's one long list


class _Window:
    """A text that is read on as needed: `at` points into `text`, what lies before it may be thrown away."""

    def __init__(self, pieces: Iterator[str], place: str):
        self.pieces, self.place, self.text, self.at, self.count = pieces, place, "", 0, 0
        self.decode = json.JSONDecoder().raw_decode

    def more(self) -> bool:
        wanted, pieces = max(1, len(self.text) - self.at), []  # double, so that a long value is tried few times
        while wanted > 0 and (piece := next(self.pieces, None)) is not None:
            pieces.append(piece)
            wanted -= len(piece)
        self.text, self.at = self.text[self.at :] + "".join(pieces), 0
        return bool(pieces)

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            self.at = re.compile(r"\s*").match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, wanted: str) -> str:
        character = self.peek()
        if not character or character not in wanted:
            place = f"{self.place}, after row {self.count}"
            raise SourceError(place, f"broken JSON ({character or 'the file ends'!r})", " or ".join(wanted))
        self.at += 1
        return character

    def cut(self, error: Exception) -> bool:
        """Whether it may be that only the rest of the value is missing."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos > len(self.text) - TOKEN

    def value(self) -> object:
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                length = end - self.at
                if end + 3 <= len(self.text) or not self.more():  # a number might go on, as 1 does in 1e+5
                    self.at += length
                    return value
            except (ValueError, RecursionError) as error:
                if not self.cut(error) or not self.more():
                    place = f"{self.place}, after row {self.count}"
                    why = getattr(error, "msg", error)  # its line and column are of a part
                    raise SourceError(place, f"broken JSON ({why})", "a whole JSON file") from None


def json_records(pieces: Iterator[str], place: str) -> Iterator[object]:
    """The elements of its list, or of the list of objects under one of LISTS, or its objects one after another.

    The last is JSON Lines under any name. Raises SourceError with the row before the error.
    """
    window = _Window(pieces, place)
    start = window.peek()
    if not start:
        raise SourceError(place, "an empty file", "JSON")
    while window.peek():
        opening = window.take("[{")
        yield from _elements(window) if opening == "[" else _members(window)


def _elements(window: _Window) -> Iterator[object]:
    if window.peek() == "]":
        window.take("]")
        return
    while True:
        value = window.value()
        window.count += 1
        yield value
        if window.take(",]") == "]":
            return


def _members(window: _Window) -> Iterator[object]:
    """An object is a record, unless it holds one of LISTS with objects, which then are the records.

    A row's own list of documents has texts. An empty list counts as LISTS where the object is no row.
    """
    record, listed, empty = {}, False, False
    if window.peek() == "}":
        window.take("}")
        return
    while True:
        key = window.value()
        window.take(":")
        if key in LISTS and window.peek() == "[":
            window.take("[")
            if window.peek() == "{":
                listed = True
                yield from _elements(window)
            else:
                count = window.count
                record[key] = [*_elements(window)]
                empty, window.count = empty or not record[key], count
        else:
            record[key] = window.value()
        if window.take(",}") == "}":
            break
    if not listed and not (empty and "query" not in record):
        window.count += 1
        yield record
