"""KommonGen: concepts -> the sentence ("scene") that uses all of them."""

from collections.abc import Iterator
from functools import partial

from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally


def _scene(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    yield {"query": record["concept-set"].replace("#", " "), "document": record["scene"], "source": "kommongen"}


SOURCES = [
    Source(
        "kommongen", "KommonGen", "KommonGen: concepts -> scene", "https://github.com/J-Seo/KommonGen", "MIT",
        "kommongen_{train,dev,test_1.1}.json (JSON Lines despite the name)",
        partial(converted, wanted=r"kommongen[^/]*\.jsonl?", convert=_scene),
    ),
]  # fmt: skip
