"""KorQuAD 1.0 and 2.1: question -> Wikipedia paragraph.

1.0 has the shape of SQuAD 1.1. 2.1 asks about whole pages: the row's document is the page's title and a window around
the answer, tags taken out, table cells divided by " | " (an answer longer than the window: its beginning).
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from koir.sources.mrc import questions
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally

LICENCE = "CC BY-ND 2.0 KR: keep rows made of it to yourself"


def _read(path: Path, tally: Tally, version: str) -> Iterator[tuple[dict, str]]:
    wanted = rf"(korquad_?v?{version[0]}.*\.json|squad_kor_v{version[0]}/.*\.parquet)"
    return converted(path, tally, wanted, partial(questions, source=f"korquad-{version}"))


SOURCES = [
    Source(
        "korquad", "KorQuAD", "KorQuAD 1.0: question -> paragraph", "https://korquad.github.io", LICENCE,
        "KorQuAD_v1.0_train.json and _dev.json, or the hub's squad_kor_v1/*.parquet", partial(_read, version="1.0"),
    ),
    Source(
        "korquad-2.1", "KorQuAD", "KorQuAD 2.1: question -> window of a page", "https://korquad.github.io", LICENCE,
        "KorQuAD_2.1_train_*.zip and _dev_*.zip", partial(_read, version="2.1"),
    ),
]  # fmt: skip
