"""NIKL (모두의 말뭉치): newspaper, summarisation and paraphrase.

Newspaper: headline -> article (paragraphs after the one that repeats the headline). Summarisation: headline -> article
and summary -> article; the articles stand in the newspaper corpus, which must lie below the same path. Paraphrase:
paraphrase -> the newspaper paragraph or utterance it was made of, likewise. An article longer than the window keeps its
first paragraphs. A text that is not there is a counted drop. Which releases KoE5 took is unknown; no NIKL MRC release
was found.
"""

from collections.abc import Iterator
from pathlib import Path

from koir.sources.archives import walk
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally

LICENCE = "NIKL terms: use on application; not to be passed on"
WHERE = "https://kli.korean.go.kr/corpus (모두의 말뭉치)"
VOLUMES = r"(^|/)[A-Z]{4}\d+\.json"  # NWRW1800000021.json, SDRW2000000001.json
NEWSPAPERS = r"(^|/)N[A-Z]{3}\d+\.json"


def _headline(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    title, article = record["metadata"]["title"] or "", _article(record, tally)
    if not title.strip() or not article:
        tally.drop("no headline or no article", place)
        return
    yield {"query": title, "document": article, "source": "nikl-newspaper", "id": record["id"]}


def _article(record: dict, tally: Tally) -> str:
    forms = [paragraph["form"].strip() for paragraph in record["paragraph"]]
    if forms and forms[0] == (record["metadata"]["title"] or "").strip():
        forms = forms[1:]
    kept, size = [], 0
    for form in filter(None, forms):
        size += len(form) + 1
        if kept and size > tally.window:
            tally.notes["articles cut to their first paragraphs"] += 1
            break
        kept.append(form)
    return "\n".join(kept)


def _read_newspaper(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    return converted(walk(path), NEWSPAPERS, _headline, tally)


def _itself(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    yield record


def _read_summarisation(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    records = [*converted(walk(path), r"NIKL_SC[^/]*\.json", _itself, tally)]
    wanted, articles = {record["document_id"] for record, _ in records}, {}
    for document, _ in _volumes(path, tally):
        if document["id"] in wanted:
            articles[document["id"]] = _article(document, tally)
    for record, place in records:
        number = record["document_id"]
        for kind, query in (("head", record["head"]), ("summary", " ".join(record["summary_sentences"]))):
            if not articles.get(number) or not query:
                tally.drop("article not below this path" if query else f"no {kind}", place)
                continue
            row = {"query": query, "document": articles[number], "source": "nikl-summarisation"}
            yield row | {"id": f"{number}-{kind}"}, place


def _read_paraphrase(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    records = [*converted(walk(path), r"NIKL_PC[^/]*\.json", _itself, tally)]
    origin = lambda record: record["sentence_id"].rpartition(".")[0]  # noqa: E731
    wanted, texts = {origin(record) for record, _ in records}, {}
    for document, _ in _volumes(path, tally):
        for piece in document.get("paragraph") or document.get("utterance") or []:
            if piece["id"] in wanted:
                texts[piece["id"]] = piece["form"]
    for record, place in records:
        for i, paraphrase in enumerate(record["paraphrases"]):
            if origin(record) not in texts:
                tally.drop("paragraph not below this path", place)
                continue
            row = {"query": paraphrase["form"], "document": texts[origin(record)], "source": "nikl-paraphrase"}
            yield row | {"id": f"{record['sentence_id']}-{i}"}, place


def _volumes(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    """Documents of the corpus that records point into; its own counts are of no interest."""
    aside = Tally(window=tally.window)
    yield from converted(walk(path), VOLUMES, _itself, aside)
    tally.ignored = [name for name in tally.ignored if name not in aside.files]
    tally.files += aside.files


SOURCES = [
    Source(
        "nikl-newspaper", "NIKL", "newspaper: headline -> article", WHERE, LICENCE,
        "NIKL_NEWSPAPER(v1.0).zip or NIKL_NEWSPAPER_v2.0.zip, or its JSON volumes", _read_newspaper,
    ),
    Source(
        "nikl-summarisation", "NIKL", "summarisation: headline and summary -> article", WHERE, LICENCE,
        "NIKL_SC.json and the newspaper volumes below one path", _read_summarisation,
    ),
    Source(
        "nikl-paraphrase", "NIKL", "paraphrase: paraphrase -> paragraph it was made of", WHERE, LICENCE,
        "NIKL_PC.json and the volumes it names below one path", _read_paraphrase,
    ),
]  # fmt: skip
