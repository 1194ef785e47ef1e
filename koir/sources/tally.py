"""What was asked of a source, and what it read, passed over and dropped, with the first places of each reason."""

import re
from collections import Counter

WINDOW = 1500  # characters; about 512 tokens of Korean, which is what an encoder of the e5 family reads
EXAMPLES = 3  # places remembered of each reason
SPLITS = {
    "test": r"(^|[/._-])(test|테스트)([/._-]|\d|$)",
    "dev": r"(^|[/._-])(dev|valid|validation|\d\.validation|VL|VS)([/._-]|$)",
}


class Tally:
    """Counts of one source. splits: which of train, dev and test are wanted; a file that names none is train.

    window: characters of a longer paragraph or article that are kept. columns: what a user's own records call the
    fields of a row, where that is told.
    """

    def __init__(
        self,
        splits: tuple[str, ...] = ("train", "dev", "test"),
        window: int = WINDOW,
        columns: dict[str, str] | None = None,
    ):
        self.wanted, self.window, self.columns = splits, window, columns or {}
        self.records: Counter[str] = Counter()  # by split
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.notes: Counter[str] = Counter()
        self.files: list[str] = []
        self.ignored: list[str] = []
        self.left_out: list[str] = []

    def drop(self, reason: str, place: str) -> None:
        """Count one record or question that becomes no row."""
        self.dropped[reason] += 1
        if len(self.examples.setdefault(reason, [])) < EXAMPLES:
            self.examples[reason].append(place)

    def opens(self, name: str, split: str) -> bool:
        """Whether a file of this split is wanted; the file is remembered either way."""
        opened = split in self.wanted
        (self.files if opened else self.left_out).append(name)
        return opened

    def content(self) -> dict:
        """Everything, for a report in JSON."""
        return {
            "records": dict(self.records),
            "dropped": dict(self.dropped.most_common()),
            "dropped_first_at": self.examples,
            "notes": dict(self.notes),
            "files": self.files,
            "files_of_other_splits": self.left_out,
            "files_ignored": self.ignored,
        }


def split_of(name: str) -> str:
    """The split that a file's name or folder tells: test, dev, else train."""
    return next((split for split, sign in SPLITS.items() if re.search(sign, name, re.IGNORECASE)), "train")
