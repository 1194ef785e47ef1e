"""What was asked of a source, and what it read, passed over and dropped, with the first places of each reason."""

import re
from collections import Counter

WINDOW = 1500  # characters; about 512 tokens of Korean, which is what an encoder of the e5 family reads
EXAMPLES = 3  # places remembered of each reason
SPLITS = {
    split: re.compile(rf"(?:^|[^\w]|_)(?:{words})\d*(?:[^\w]|_|$)", re.IGNORECASE)
    for split, words in {
        "test": "test|testset|테스트",
        "dev": "dev|val|valid|validation|eval|VL|VS|검증|검증데이터",
        "train": "train|training|TL|TS|학습|학습데이터",
    }.items()
}
# A release's own folders.
RELEASE = re.compile(r"\d+\.?\s*(?:training|validation|test)|training|validation", re.IGNORECASE)


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
        self.questions = 0  # of reading comprehension, where a record holds many
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
            "questions": self.questions,
            "dropped": dict(self.dropped.most_common()),
            "dropped_first_at": self.examples,
            "notes": dict(self.notes),
            "files": self.files,
            "files_of_other_splits": self.left_out,
            "files_ignored": self.ignored,
        }


def split_of(name: str, above: str = "") -> str:
    """The split that a file's name tells, else the nearest of its folders that does; of several test, then dev.

    above: folders over what the user named, of which those that releases have count (a user's own may be called dev).
    """
    folders = [folder for folder in above.split("/") if RELEASE.fullmatch(folder)]
    for part in reversed([*folders, *name.split("/")]):
        if told := next((split for split, sign in SPLITS.items() if sign.search(part)), None):
            return told
    return "train"
