"""NIKL (모두의 말뭉치): newspaper, summarisation and paraphrase.

Newspaper: headline -> article (paragraphs after the one that repeats the headline). Summarisation: headline -> article
and summary -> article; the articles stand in the newspaper corpus, which must lie below the same path. Paraphrase:
paraphrase -> the newspaper paragraph or utterance it was made of, likewise. An article longer than the window keeps its
first paragraphs. A text that is not there is a counted drop. Which releases KoE5 took is unknown; no NIKL MRC release
was found.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

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
    forms = [(paragraph["form"] or "").strip() for paragraph in record["paragraph"]]
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


def _summary(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    summary = " ".join(filter(None, record["summary_sentences"] or []))
    yield {"document": record["document_id"], "head": record["head"] or "", "summary": summary}


def _read_summarisation(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    records = [*converted(path, tally, r"NIKL_SC[^/]*\.json", _summary)]
    wanted, articles = {record["document"] for record, _ in records}, {}

    def article(document: dict, place: str, aside: Tally) -> Iterator[dict]:
        if document["id"] in wanted:
            articles[document["id"]] = _article(document, tally)
        yield from ()

    _read_volumes(path, tally, article)
    for record, place in records:
        number = record["document"]
        for kind in ("head", "summary"):
            query = record[kind]
            if not articles.get(number) or not query:
                tally.drop("article not below this path" if query else f"no {kind}", place)
                continue
            row = {"query": query, "document": articles[number], "source": "nikl-summarisation"}
            yield row | {"id": f"{number}-{kind}"}, place


def _read_paraphrase(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    records = [*converted(path, tally, r"NIKL_PC[^/]*\.json", _paraphrases)]
    wanted, texts = {record["origin"] for record, _ in records}, {}

    def piece(document: dict, place: str, aside: Tally) -> Iterator[dict]:
        pieces = document.get("paragraph") or document.get("utterance") or []
        texts.update((part["id"], part["form"]) for part in pieces if part["id"] in wanted)
        yield from ()

    _read_volumes(path, tally, piece)
    for record, place in records:
        for i, form in enumerate(record["forms"]):
            if record["origin"] not in texts:
                tally.drop("paragraph not below this path", place)
                continue
            row = {"query": form, "document": texts[record["origin"]], "source": "nikl-paraphrase"}
            yield row | {"id": f"{record['sentence']}-{i}"}, place


def _paraphrases(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    sentence, forms = record["sentence_id"], [paraphrase["form"] for paraphrase in record["paraphrases"] or []]
    if not forms:
        tally.drop("no paraphrase", place)
    yield {"sentence": sentence, "origin": sentence.rpartition(".")[0], "forms": forms}


def _read_volumes(path: Path, tally: Tally, take: Callable[[dict, str, Tally], Iterator[dict]]) -> None:
    """Give every document of the corpus that records point into to `take`; its own counts are of no interest."""
    aside = Tally(window=tally.window)
    for _ in converted(path, aside, VOLUMES, take):
        pass
    tally.ignored = [name for name in tally.ignored if name not in aside.files]
    tally.files += aside.files


SOURCES = [
    Source(
        "nikl-newspaper", "NIKL", "newspaper: headline -> article", WHERE, LICENCE,
        "NIKL_NEWSPAPER(v1.0).zip or NIKL_NEWSPAPER_v2.0.zip, or its JSON volumes",
        partial(converted, wanted=NEWSPAPERS, convert=_headline),
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
