"""Rows that the bundled base encoder learns from: open Korean corpora, clozes of their passages, and long pages."""

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from koir.manifest import DEMO
from koir.sources.registry import find
from koir.sources.tally import Tally

# Source, path below the raw folder, share of its rows that is taken. Of KoBEST and KorSTS the train split alone.
CORPORA = [
    ("kobest-boolq", "kobest/BoolQ/train.tsv.gz", 1),
    ("kobest-copa", "kobest/COPA/train.tsv.gz", 1),
    ("kobest-hellaswag", "kobest/HellaSwag/train.tsv.gz", 1),
    ("kobest-wic", "kobest/WiC/train.tsv.gz", 1),
    ("kornli", "kornlu/KorNLI", 1),
    ("korsts", "kornlu/KorSTS/sts-train.tsv.gz", 1),
    ("klue-nli", "klue", 1),
    ("klue-sts", "klue", 1),
    ("parakqc", "parakqc", 1),
    ("kommongen", "kommongen", 1),
    ("question-pair", "question_pair/kor_pair_train.csv.gz", 0.3),  # chat about love, mostly
    ("chatbot", "chatbot", 0.2),
]
RETRIEVAL = ("strategyqa", "kobest-boolq", "cloze")  # rows whose documents may stand on a longer page
PAGES = 3000
SENTENCES = re.compile(r"(?<=[.?!])\s+")
FACT = re.compile(r"사실\s*\d+\s*[:：]")
TERM = re.compile(
    r"용어\s*[:：]\s*(?P<term>.+?)[,.]?\s*설명\s*[:：]\s*(?P<description>.+?)[,.]?\s*질문\s*[:：]\s*(?P<question>.+?\?)"
)


def text_of(file: Path) -> str:
    """A UTF-8 file, gzipped or not."""
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
        return stream.read().decode("utf-8-sig")


def json_lines(file: Path) -> list[dict]:
    """Records of a JSON Lines file, gzipped or not."""
    return [json.loads(line) for line in text_of(file).splitlines() if line.strip()]


def row(query: str, document: str, source: str, hard_negatives: list[str] | None = None) -> dict:
    """One row, without spaces at the ends."""
    made = {"query": query.strip(), "document": document.strip(), "source": source}
    return made | ({"hard_negative": hard_negatives} if hard_negatives else {})


def as_in_file(cell: str) -> str:
    """A cell with the quotes that a table puts around quotes: what ships was made of such cells.

    Without them all that is drawn at random afterwards would be drawn anew.
    """
    doubled = cell.replace('"', '""')
    return f'"{doubled}"' if '"' in cell else cell


def corpus_rows(raw: Path, rng: random.Random) -> Iterator[dict]:
    """Pairs of the corpora above, as their readers give them. HellaSwag is turned: an ending finds its context."""
    for name, path, share in CORPORA:
        for found, _ in find(name).read(raw / path, Tally()):
            if rng.random() >= share:
                continue
            query, documents, negatives = found["query"], found["document"], found.get("hard_negative") or []
            negatives = [negatives] if isinstance(negatives, str) else negatives
            if name == "kobest-hellaswag":
                yield row(as_in_file(documents), as_in_file(query), name)
            elif isinstance(documents, str):
                yield row(query, documents, name, negatives)
            else:  # ten sentences that mean one thing: five pairs of them
                texts = [query, *documents]
                yield from (row(texts[i], texts[i + len(texts) // 2], name) for i in range(len(texts) // 2))


def strategyqa(raw: Path, beir: Path) -> tuple[list[dict], list[str]]:
    """Question -> facts, question and term -> description, fact -> the next fact; and each term as a passage.

    Only questions of the train split of strategyqa-ko-facts, and of those none whose term a dev or test question has.
    """
    folder = beir / "strategyqa-ko-facts"
    train = {line.split("\t")[0] for line in text_of(folder / "qrels/train.tsv").splitlines()[1:]}
    questions = {item["text"].strip(): item["_id"] in train for item in json_lines(folder / "queries.jsonl.gz")}
    (file,) = (raw / "strategyqa-ko").glob("*.json.gz")
    read = [
        ({name: text.strip() for name, text in found.groupdict().items()}, instance["output"][0])
        for instance in json.loads(text_of(file))["Instances"]
        if (found := TERM.search(instance["input"].replace("\n", " ")))
    ]
    held = {item["term"] for item, _ in read if questions.get(item["question"]) is False}
    rows, passages = [], []
    for item, output in read:
        if item["term"] in held or not questions.get(item["question"]):
            continue
        facts = [fact.strip() for fact in FACT.split(output) if fact.strip()]
        named = f"{item['term']}: {item['description']}"
        rows += [row(item["question"], fact, "strategyqa") for fact in facts]
        rows += [row(item["question"], named, "strategyqa-term"), row(item["term"], item["description"], "term")]
        rows += [row(a, b, "strategyqa-facts") for a, b in zip(facts, facts[1:], strict=False)]
        passages.append(" ".join([named, *facts]))
    return rows, passages


def demo_passages() -> list[str]:
    """The passages of the bundled demo. Its queries stay out, so that fine-tuning on them shows what it gives."""
    return [f"{item['title']}\n{item['text']}" for item in json_lines(DEMO / "beir/corpus.jsonl")]


def keywords(text: str, rng: random.Random) -> str:
    """Some of a text's words in their order, as typed into a search box; the ends of some are cut off."""
    words = text.split()
    kept = [word for word in words if rng.random() < 0.4] or [rng.choice(words)]
    return " ".join(word[: max(2, len(word) - 1)] if rng.random() < 0.3 else word for word in kept[:12])


def clozes(passages: list[str], rng: random.Random) -> Iterator[dict]:
    """Inverse cloze: two sentences of a passage, each whole or its keywords, find the rest; one in four finds all."""
    for passage in passages:
        parts = [part for part in SENTENCES.split(passage.replace("\n", " ")) if part.strip()]
        for index in rng.sample(range(len(parts)), min(2, len(parts))):
            rest = " ".join(parts[:index] + parts[index + 1 :])
            document = passage if not rest or rng.random() < 0.25 else rest
            yield row(parts[index] if rng.random() < 0.5 else keywords(parts[index], rng), document, "cloze")


def pages(rows: list[dict], passages: list[str], rng: random.Random) -> Iterator[dict]:
    """A row's document between strangers, as on a scanned page: what answers is a part of what is found."""
    for item in rng.sample(rows, min(PAGES, len(rows))):
        parts = [*rng.sample(passages, rng.randint(1, 3)), item["document"]]
        rng.shuffle(parts)
        yield row(item["query"], "\n".join(parts), "page")


def held_out(beir: Path) -> set[str]:
    """Every dev and test query of the tasks under `beir` and of the demo."""
    texts = set()
    for folder in [*sorted(path for path in beir.iterdir() if path.is_dir()), DEMO / "beir"]:
        (file,) = folder.glob("queries.jsonl*")
        asked = {item["_id"]: item["text"].strip() for item in json_lines(file)}
        for split in ("dev", "test"):
            if (qrels := folder / f"qrels/{split}.tsv").is_file():
                texts |= {asked[line.split("\t")[0]] for line in text_of(qrels).splitlines()[1:]}
    return texts


def all_rows(raw: Path, beir: Path, seed: int) -> list[dict]:
    """Every row, in random order. Held-out queries, and pairs of two equal texts, are left out."""
    rng = random.Random(seed)
    rows, passages = strategyqa(raw, beir)
    rows += corpus_rows(raw, rng)
    passages += dict.fromkeys(item["document"] for item in rows if item["source"] == "kobest-boolq")
    passages += [f"{item['document']} {item['query']}" for item in rows if item["source"] == "kobest-hellaswag"]
    passages += demo_passages()
    rows += list(clozes(passages, rng))
    single = [item["document"] for item in rows if item["source"] in ("kobest-wic", "korsts", "kommongen", "klue-nli")]
    rows += [row(keywords(text, rng), text, "keywords") for text in single]
    rows += list(pages([item for item in rows if item["source"] in RETRIEVAL], passages, rng))
    held = held_out(beir)
    rows = [item for item in rows if item["query"] != item["document"] and not {item["query"], item["document"]} & held]
    rng.shuffle(rows)
    return rows
