"""KommonGen: concepts -> the sentence ("scene") that uses all of them."""

from collections.abc import Iterator
from pathlib import Path

from koir.sources.archives import walk
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally


def _scene(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    yield {"query": record["concept-set"].replace("#", " "), "document": record["scene"], "source": "kommongen"}


def _read(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    return converted(walk(path), r"kommongen[^/]*\.jsonl?", _scene, tally)


SOURCES = [
    Source(
        "kommongen", "KommonGen", "KommonGen: concepts -> scene", "https://github.com/J-Seo/KommonGen", "MIT",
        "kommongen_{train,dev,test_1.1}.json (JSON Lines despite the name)", _read,
    ),
]  # fmt: skip
