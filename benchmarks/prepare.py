"""Speed and memory of preparing rows and mining negatives, on generated files in the shape of AIHUB 016.

    .venv/bin/python benchmarks/prepare.py [--rows 723428] [--passages 200000] [--queries 2000] [--json FILE]

Writes zips of the release's kinds and field names into a temporary folder and runs scripts/prepare_data.py on them, in
a process of its own. Text is random: words of a noun and a particle, nouns drawn by Zipf's law. Lengths are
log-normal, fitted to 29 paragraphs (448 characters on average) and 58 questions (42) of the vendor's public sample;
106,530 questions on 63,932 paragraphs. One paragraph in fifty is an earlier one again, half of these with other words
at the end.
Mining is timed after tokenising: the nouns are known, and Kiwi is timed beside it, on --kiwi paragraphs.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
KINDS = {"span_extraction": 1, "span_extraction_how": 2, "tableqa": 3, "text_entailment": 5, "multiple_choice": 6}
UNANSWERABLE = 20  # one question more in so many, to be dropped
CONTEXT, QUESTION = (np.log(395), 0.43), (np.log(41.3), 0.21)  # characters: mean and deviation of the logarithm
QUESTIONS = 106_530 / 63_932  # a paragraph
PARTICLES = [
    "은", "는", "이", "가", "을", "를", "의", "에", "에서", "으로",
    "와", "도", "하는", "하고", "하여", "된", "되어", "한다.", "했다.", "이다.",
]  # fmt: skip
ENDINGS = ("무엇인가?", "언제인가?", "얼마인가?", "어디인가?", "누구인가?")


class Language:
    """Random text: 60,000 nouns of two or three syllables, each with a particle."""

    def __init__(self, seed: int = 0, nouns: int = 60_000):
        self.draw, self.choose = np.random.default_rng(seed), random.Random(seed)
        syllables = [chr(0xAC00 + 28 * i + final) for i in range(0, 399, 3) for final in (0, 1, 4, 8, 16, 21)]
        words = {"".join(self.choose.choices(syllables, k=self.choose.choice((2, 2, 3)))) for _ in range(2 * nouns)}
        self.nouns = sorted(words)[:: max(1, len(words) // nouns)][:nouns]
        self.choose.shuffle(self.nouns)
        self.shares = np.cumsum(1 / np.arange(1, len(self.nouns) + 1))

    def words(self, characters: int) -> list[str]:
        """Words that together have about so many characters."""
        count = max(2, round(characters / 4.7))
        nouns = np.searchsorted(self.shares, self.draw.random(count) * self.shares[-1])
        return [self.nouns[noun] + self.choose.choice(PARTICLES) for noun in nouns]

    def length(self, fitted: tuple[float, float]) -> int:
        """A number of characters out of a log-normal distribution."""
        return round(self.draw.lognormal(*fitted))

    def question(self, context: list[str]) -> str:
        """Two words in three from the paragraph, the rest at random, and an interrogative."""
        words = self.words(self.length(QUESTION) - 6)
        return " ".join([self.choose.choice(context) if i % 3 else word for i, word in enumerate(words)]
                        + [self.choose.choice(ENDINGS)])  # fmt: skip


def nouns(texts: list[str], progress: str | None = None) -> list[list[str]]:
    """What a tokeniser would find in `Language`'s texts: words without their last particle. progress: as there."""
    ends = tuple(sorted(PARTICLES, key=len, reverse=True))

    def stem(word: str) -> str:
        return next((word[: -len(end)] for end in ends if word.endswith(end) and len(word) - len(end) >= 2), word)

    return [[stem(word) for word in text.split()] for text in texts]


# --- the build -------------------------------------------------------------------------------------------------------


def write_release(folder: Path, rows: int) -> dict:
    """Zips of `rows` answerable questions; how many of each kind of paragraph were written, and bytes."""
    language, facts, left = Language(), {"questions": 0, "paragraphs": 0, "repeated": 0, "bytes": 0}, rows
    for place, kind in enumerate(KINDS):
        share = left // (len(KINDS) - place)
        left -= share
        file = folder / "016.행정 문서 대상 기계독해 데이터/01.데이터/1.Training/라벨링데이터" / f"TL_{kind}.zip"
        file.parent.mkdir(parents=True, exist_ok=True)
        pack = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with pack, pack.open(f"TL_{kind}.json", "w", force_zip64=True) as out:
            out.write(b'{"Dataset": {"Identifier": "TextQA_Administrator_Doc_01", "type": 0}, "data": [')
            for number, entry in enumerate(entries(language, kind, share, facts)):
                text = (", " if number else "") + json.dumps(entry, ensure_ascii=False)
                facts["bytes"] += out.write(text.encode())
            out.write(b"]}")
    return facts


def entries(language: Language, kind: str, rows: int, facts: dict) -> Iterator[dict]:
    """Documents of one file, with `rows` answerable questions together."""
    earlier: list[tuple[list[str], list[str]]] = []
    while rows > 0:
        facts["paragraphs"] += 1
        if earlier and language.choose.random() < 0.02:
            facts["repeated"] += 1
            context, asked = language.choose.choice(earlier)
            if facts["repeated"] % 2:
                context = [*context[:-1], *language.words(5)]
        else:
            context = language.words(language.length(CONTEXT))
            asked = [language.question(context) for _ in range(1 + (language.choose.random() < QUESTIONS - 1))]
            earlier = [*earlier[-99:], (context, asked)]
        asked = asked[:rows]
        rows -= len(asked)
        text = " ".join(context)
        qas = [question(language, kind, facts, context, text, words) for words in asked]
        if facts["questions"] % UNANSWERABLE == 0:
            qas.append(question(language, kind, facts, context, text, language.question(context), False))
        yield {
            "doc_id": f"D{facts['paragraphs']:013}", "doc_title": " ".join(language.words(24)),
            "doc_source": "서울특별시청", "doc_published": 20210626, "created": "20220422150201",
            "doc_class": {"class": "중앙행정기관 분류체계", "code": "공공행정"},
            "paragraphs": [{"context": text, "context_id": str(facts["paragraphs"]), "qas": qas}],
        }  # fmt: skip


def question(
    language: Language, kind: str, facts: dict, context: list[str], text: str, asked: str, answerable: bool = True
) -> dict:
    """One question of the release; kinds 5 and 6 have a clue in place of a span."""
    facts["questions"] += answerable
    answer = language.choose.choice(context)
    start, clue = text.index(answer), KINDS[kind] >= 5
    span = {"text": "Yes", "answer_start": None} if clue else {"text": answer, "answer_start": start}
    clued = {"clue_start": start, "clue_text": answer} if clue else {"clue_start": None, "clue_text": None}
    qa = {"qa_type": KINDS[kind] if answerable else 7, "question_id": str(5_000_000 + facts["questions"])}
    return qa | {"question": asked, "is_impossible": not answerable, "answers": span | clued | {"options": None}}


def build(rows: int, folder: Path) -> dict:
    """Generate, prepare in another process, and say what it took."""
    started = time.perf_counter()
    facts = write_release(folder / "raw", rows)
    generated = time.perf_counter()
    command = ["scripts/prepare_data.py", "--source", f"aihub-admin-mrc={folder / 'raw'}"]
    command += ["--output_dir", str(folder / "rows"), "--json", str(folder / "report.json")]
    environment = os.environ | {"KOIR_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    used, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - generated
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return facts | {
        "generate_seconds": generated - started, "seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024, "rows_kept": report["rows"], "rows_read": rows,
    }  # fmt: skip


# --- mining ----------------------------------------------------------------------------------------------------------


def mining(passages: int, queries: int) -> dict:
    """BM25 mining on one core: seconds of the processor to index, search and choose; memory of it all."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from koir.mining import Query, Rules, Statistics, mine
    from koir.retrieval import bm25

    bm25.morphemes = nouns
    language = Language(1)
    contexts = [language.words(language.length(CONTEXT)) for _ in range(passages)]
    corpus = {f"{number:07}": " ".join(words) for number, words in enumerate(contexts)}
    picked = language.choose.sample(range(passages), min(queries, passages))
    asked = [language.question(contexts[number]) for number in picked]
    del contexts
    clock = [time.process_time()]
    index = bm25.BM25(corpus)
    clock.append(time.process_time())
    words = nouns(asked)  # timed apart, and handed to the search as they are
    bm25.morphemes = lambda texts: words
    clock.append(time.process_time())
    found = index.search(asked, 100)
    clock.append(time.process_time())
    statistics = Statistics()
    for text, number, run in zip(asked, picked, found, strict=True):
        positive = f"{number:07}"
        mine(Query(text, [positive], frozenset([positive])), run, corpus, Rules(), statistics)
    clock.append(time.process_time())
    search, choose = clock[3] - clock[2], clock[4] - clock[3]
    return {
        "passages": passages, "queries": len(asked), "index_seconds": clock[1] - clock[0], "search_seconds": search,
        "choose_seconds": choose, "queries_per_second": len(asked) / (search + choose),
        "counts": dict(statistics.counts),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def kiwi(paragraphs: int, folder: Path) -> dict:
    """Characters a second of Kiwi, and of the cache, over texts of `Language`."""
    os.environ["KOIR_CACHE"] = str(folder / "kiwi")
    from koir.retrieval.morphemes import morphemes

    language = Language(2)
    texts = [" ".join(language.words(language.length(CONTEXT))) for _ in range(paragraphs)]
    morphemes(["준비"])  # Kiwi's model is loaded
    took = []
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        morphemes(texts)
        took.append((time.perf_counter() - wall, time.process_time() - cpu))
    characters, (seconds, cpu) = sum(map(len, texts)), took[0]
    facts = {"characters": characters, "seconds": seconds, "cpu_seconds": cpu}
    facts["characters_per_cpu_second"] = characters / cpu
    return facts | {"cached_characters_per_cpu_second": characters / took[1][1]}


def table(found: dict) -> list[str]:
    """The lines to print."""
    made, mined, words = found["build"], found["mining"], found["kiwi"]
    millis = {name: 1e3 * mined[f"{name}_seconds"] / mined["queries"] for name in ("search", "choose")}
    load = ", ".join(f"{number:.1f}" for number in found["load"])
    return [
        f"numpy {np.__version__}, {platform.machine()}, {os.cpu_count()} cores, load average before and after: {load}",
        f"raw: {made['rows_read']:,} answerable questions on {made['paragraphs']:,} paragraphs"
        f" ({made['repeated']:,} of them again), {made['bytes'] / 2**20:,.0f} MiB of JSON",
        f"read, clean, deduplicate, write: {made['seconds'] / 60:.1f} min, of the processor"
        f" {made['cpu_seconds'] / 60:.1f} min, {1e3 * made['cpu_seconds'] / made['rows_read']:.2f} ms a row;"
        f" {made['peak_bytes'] / 2**20:,.0f} MiB resident; {made['rows_kept']:,} rows kept",
        f"BM25 mining among {mined['passages']:,} passages, after tokenising: index {mined['index_seconds']:.0f} s,"
        f" {mined['queries_per_second']:,.0f} queries a second and core (search {millis['search']:.2f} ms,"
        f" choose {millis['choose']:.2f} ms); {mined['peak_bytes'] / 2**20:,.0f} MiB resident",
        f"Kiwi: {words['characters_per_cpu_second']:,.0f} characters a second of the processor, from the cache"
        f" {words['cached_characters_per_cpu_second']:,.0f}",
    ]


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=723_428, help="answerable questions (default 723428)")
    parser.add_argument("--passages", type=int, default=200_000, help="mined among (default 200000)")
    parser.add_argument("--queries", type=int, default=2_000, help="mined for (default 2000)")
    parser.add_argument("--kiwi", type=int, default=2_000, help="paragraphs that Kiwi reads (default 2000)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mining_only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mining_only:  # in a process of its own, so that its memory is its own
        print(json.dumps(mining(arguments.passages, arguments.queries)))
        return
    found = {"load": [os.getloadavg()[0]]}
    with tempfile.TemporaryDirectory(prefix="koir-prepare-") as folder:
        found["build"] = build(arguments.rows, Path(folder))
        words = ["--mining_only", "--passages", arguments.passages, "--queries", arguments.queries]
        done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=True)
        found["mining"] = json.loads(done.stdout.splitlines()[-1])
        found["kiwi"] = kiwi(arguments.kiwi, Path(folder))
    found["load"].append(os.getloadavg()[0])
    print("\n".join(table(found)))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
