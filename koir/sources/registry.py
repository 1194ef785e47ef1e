"""All sources by name: each module of this package that has SOURCES adds its own."""

import importlib
import itertools
import pkgutil
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import koir.sources
from koir.errors import FlagError, RowError, SourceError, nearest
from koir.sources.archives import DATA
from koir.sources.tally import Tally
from koir.triplets import check_row, listed

KOE5 = {  # rows that KoE5 took from each family; 723,428 in all
    "AIHUB": 552_276,
    "KorQuAD": 28_795,
    "KommonGen": 14_893,
    "Exobrain": 78_362,
    "KLUE": 6_334,
    "KoBEST": 2_849,
    "NIKL": 39_919,
}
# Archives of other kinds, and parts of such.
UNOPENED = re.compile(r"\.(7z|rar|alz|egg|bz2|xz|zst|z\d\d|(zip|7z)\.\d{3})$", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One corpus. read(path, tally) yields (row, place) for all below `path`; counts of the rest go to the tally.

    family: a key of KOE5, or another. what, where, licence, files: for --list and the report. pack: endings of file
    names that a whole download has; one that is not met is reported.
    """

    name: str
    family: str
    what: str
    where: str
    licence: str
    files: str
    read: Callable[[Path, Tally], Iterator[tuple[dict, str]]]
    pack: tuple[str, ...] = ()


def sources() -> dict[str, Source]:
    """Every source, by family, KoE5's first."""
    found = []
    for module in pkgutil.iter_modules(koir.sources.__path__):
        found += getattr(importlib.import_module(f"koir.sources.{module.name}"), "SOURCES", [])
    order = [*KOE5]
    place = lambda s: (order.index(s.family) if s.family in order else len(order), s.family)  # noqa: E731
    return {source.name: source for source in sorted(found, key=place)}


def find(name: str) -> Source:
    """The source of a name; FlagError with the nearest one."""
    known = sources()
    if name not in known:
        raise FlagError(f"--source {name}", "an unknown source", "one that --list shows" + nearest(name, known))
    return known[name]


def checked_rows(source: Source, path: Path, tally: Tally) -> Iterator[dict]:
    """The rows of one source, each as `load_triplets` accepts it; raises SourceError where there is none.

    A row that cannot be used (an empty text, the document among its hard negatives, a query that is its own document)
    is dropped and counted.
    """
    count = 0
    for row, place in source.read(path, tally):
        row = _without_its_documents(row, tally)
        try:
            pairs = check_row(row, place)
        except RowError as error:
            where = re.sub(r"\[\d+\]", "", error.place.rpartition(", ")[2])  # the same for whichever of a list
            tally.drop(f"{where}: {error.found.partition(' (')[0]}", place)
            continue
        if pairs[0]["query"] in [pair["document"] for pair in pairs]:
            tally.drop("the query is its own document", place)
            continue
        count += 1
        yield _composed(row, pairs)
    if not tally.files:
        there = ", ".join((tally.left_out or tally.ignored)[:4]) or "no file at all"
        why = "other splits" if tally.left_out else "nothing that it reads"
        raise SourceError(f"--source {source.name}={path}", f"{why} ({there})", source.files)
    if not count:
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in tally.dropped.most_common(4)) or "no records"
        raise SourceError(
            f"--source {source.name}={path}", f"no rows ({reasons})", f"at least one row of {source.what}"
        )
    names = [*tally.files, *tally.left_out]
    for ending in source.pack:
        if not any(ending in name.lower() for name in names):
            tally.notes[f"not in this download: {ending}"] += 1
    if unread := [name for name in tally.ignored if name.lower().endswith(DATA)]:
        tally.notes[f"data files that are none of this source's, {unread[0]} for one"] += len(unread)
    for name in filter(UNOPENED.search, tally.ignored):
        tally.notes[f"an archive that is not opened (unpack it): {name}"] += 1


def _without_its_documents(row: dict, tally: Tally) -> dict:
    """A row without the hard negatives that are documents of its own, and without their scores."""
    name = next((name for name in ("hard_negative", "neg") if row.get(name)), None)
    if name is None:
        return row
    if not all(isinstance(row.get(field), (str, list, type(None))) for field in (name, "document", "pos")):
        return row  # which `check_row` refuses
    right = [_composed_text(text) for field in ("document", "pos") for text in listed(row.get(field))]
    negatives = listed(row[name])
    kept = [_composed_text(text) not in right for text in negatives]
    if all(kept):
        return row
    clean = row | {name: list(itertools.compress(negatives, kept)) or None}
    for scores in (f"{name}_score", f"{name}_scores"):
        if isinstance(row.get(scores), list) and len(row[scores]) == len(negatives):
            clean[scores] = list(itertools.compress(row[scores], kept)) or None
        elif isinstance(row.get(scores), (int, float)) and not any(kept):
            clean[scores] = None
    tally.notes["hard negatives that were documents of their row"] += kept.count(False)
    return clean


def _composed_text(text: object) -> object:
    return " ".join(unicodedata.normalize("NFC", text).split()) if isinstance(text, str) else text


def _composed(row: dict, pairs: list[dict]) -> dict:
    """The row with its texts as `check_row` composed them (NFC), and no empty field."""
    documents, negatives = [pair["document"] for pair in pairs], pairs[0]["hard_negatives"]
    clean = {"query": pairs[0]["query"], "document": documents if len(documents) > 1 else documents[0]}
    if negatives:
        clean["hard_negative"] = negatives if len(negatives) > 1 else negatives[0]
    scores, negative_scores = [pair["document_score"] for pair in pairs], pairs[0]["hard_negative_scores"]
    if None not in scores:
        clean["document_score"] = scores if len(scores) > 1 else scores[0]
    if negative_scores:
        clean["hard_negative_score"] = negative_scores if len(negative_scores) > 1 else negative_scores[0]
    clean |= {"source": pairs[0]["source"] or "unnamed"}
    return clean | ({"id": pairs[0]["id"]} if pairs[0]["id"] else {})


def listing() -> str:
    """What --list prints."""
    lines, family = [], None
    for source in sources().values():
        if source.family != family:
            family = source.family
            rows = f"KoE5 took {KOE5[family]:,} rows" if family in KOE5 else "not in KoE5"
            lines += ["", f"{family} ({rows})"]
        lines.append(f"  {source.name:<22} {source.what}")
        for label, text in (("from", source.where), ("licence", source.licence), ("files", source.files)):
            lines.append(f"  {'':<22} {label}: {text}")
    return "\n".join([*lines[1:], "", f"KoE5 in all: {sum(KOE5.values()):,} rows"])
