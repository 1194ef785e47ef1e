"""Encode a corpus and search it: koir against SentenceTransformer.encode and sentence_transformers' semantic_search.

    .venv/bin/python benchmarks/retrieve.py [--model PATH] [--task BEIR] [--documents N] [--queries N] [--json FILE]

Both get the same weights, float32, device and threads in one process, warm; sentence-transformers is swept over its
batch sizes first and keeps its best. Then all run in turn, --rounds times, and each one's fastest round counts.
Without --task, texts of random Korean words have the lengths of benchmarks/lengths.json. The ten best documents of each
query and their scores are compared with sentence-transformers' in float32; with --task, nDCG@10 is too. Rows in
bfloat16 have the same weights; theirs are cast, and its batch size is that of float32. Differences need a trained
--model: the output matrices of demo's layers are zero, so its vectors are the same in either.
"""

import argparse
import functools
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from sentence_transformers import SentenceTransformer, util

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.encoder import Encoder, load_encoder
from koir.evaluation.metrics import mean_ndcg
from koir.evaluation.tasks import Task, load_task
from koir.kernels.bfloat16 import has_bfloat16
from koir.retrieval.dense import Dense

HERE = Path(__file__).parent
BATCHES = (8, 16, 32, 64, 128)
DEPTH = 10


def drawn(encoder: Encoder, documents: int, queries: int) -> tuple[list[str], list[str]]:
    """Documents and queries of random words of the demo, as long in tokens as real rows are."""
    words = sorted({word for text in load_task("demo").corpus.values() for word in text.split()})
    sizes = [len(ids) - 2 for ids in encoder.tokenizer(words)["input_ids"]]
    rows, chance = json.loads((HERE / "lengths.json").read_text(encoding="utf-8"))["lengths"], random.Random(0)

    def text(length: int) -> str:
        found, tokens = [], 6  # prompt and special tokens
        while tokens < length:
            number = chance.randrange(len(words))
            found.append(words[number])
            tokens += sizes[number]
        return " ".join(found) or words[0]

    chosen = [rows[n % len(rows)] for n in range(max(documents, queries))]
    return [text(row[1]) for row in chosen[:documents]], [text(row[0]) for row in chosen[:queries]]


def ours(encoder: Encoder, documents: list[str], queries: list[str], bf16: bool = False):
    """Seconds to embed the corpus, seconds to embed and search the queries, and what was found."""
    started = time.perf_counter()
    embeds = SimpleNamespace(encode=functools.partial(encoder.encode, bf16=bf16))
    index = Dense.build(embeds, {f"{n:09}": text for n, text in enumerate(documents)}, "dense")
    built = time.perf_counter()
    found = index.search(queries, DEPTH)
    return built - started, time.perf_counter() - built, found


def theirs(model: SentenceTransformer, documents: list[str], queries: list[str], batch: int):
    """The same by sentence-transformers."""
    settings = {"batch_size": batch, "convert_to_tensor": True, "normalize_embeddings": True}
    started = time.perf_counter()
    vectors = model.encode_document(documents, **settings)
    built = time.perf_counter()
    found = util.semantic_search(model.encode_query(queries, **settings), vectors, top_k=DEPTH)
    seconds = time.perf_counter() - built
    return built - started, seconds, [{f"{hit['corpus_id']:09}": hit["score"] for hit in hits} for hits in found]


def engines(encoder: Encoder, half: bool, few: list, texts: list) -> tuple[dict[str, Callable], dict[int, float]]:
    """Name -> a call that gives both seconds and what was found; and theirs's seconds by batch size."""
    device = next(encoder.parameters()).device.type
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder) / "model")
        load = functools.partial(SentenceTransformer, str(Path(folder) / "model"), device=device)
        models = {"fp32": load()} | ({"bf16": load(model_kwargs={"dtype": torch.bfloat16})} if half else {})
    sweep = {batch: sum(theirs(models["fp32"], *few, batch)[:2]) for batch in BATCHES}
    batch, found = min(sweep, key=sweep.get), {}
    for name, model in models.items():
        found[f"sentence-transformers {name}"] = functools.partial(theirs, model, *texts, batch)
        found[f"koir {name}"] = functools.partial(ours, encoder, *texts, name == "bf16")
        theirs(model, *few, batch), ours(encoder, *few, name == "bf16")
    return found, sweep


def report(runs: dict[str, list[tuple]], texts: list, task: Task | None) -> dict[str, dict]:
    """Print the table; returns what it shows. runs: engine -> its rounds, sentence-transformers in float32 first."""
    best = {name: min(rounds, key=lambda run: run[0] + run[1]) for name, rounds in runs.items()}
    first, count, rows = next(iter(best.values())), sum(map(len, texts)), {}
    print(f"{'':28}{'corpus s':>10}{'queries s':>11}{'texts/s':>9}{'ratio':>7}{'max |diff|':>12}{'same ten':>10}"
          f"{'nDCG@10':>9}")  # fmt: skip
    for name, (corpus, queries, found) in best.items():
        pairs = list(zip(found, first[2], strict=True))
        row = {"corpus_seconds": corpus, "query_seconds": queries, "texts_per_second": count / (corpus + queries)}
        row["ratio"] = (first[0] + first[1]) / (corpus + queries)
        row["scores_apart"] = max(abs(a[d] - b[d]) for a, b in pairs for d in a.keys() & b.keys())
        row["same"] = sum(a.keys() == b.keys() for a, b in pairs) / len(pairs)
        row["ndcg_at_10"] = ndcg(task, texts, found) if task else None
        quality = "-" if row["ndcg_at_10"] is None else f"{row['ndcg_at_10']:.4f}"
        print(f"{name:28}{corpus:>10.2f}{queries:>11.2f}{row['texts_per_second']:>9.1f}{row['ratio']:>7.2f}"
              f"{row['scores_apart']:>12.1e}{row['same']:>10.1%}{quality:>9}")  # fmt: skip
        rows[name] = row | {"all_seconds": [run[0] + run[1] for run in runs[name]]}
    return rows


def ndcg(task: Task, texts: list, found: list[dict]) -> float:
    """nDCG@10 of the task's first queries over its first documents."""
    ids = list(task.corpus)
    queries = list(task.queries)[: len(texts[1])]
    run = {q: {ids[int(number)]: score for number, score in of.items()} for q, of in zip(queries, found, strict=True)}
    return mean_ndcg({query: task.qrels[query] for query in queries}, run)


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="run folder, model folder, hub name or demo")
    parser.add_argument("--task", help="BEIR folder, whose test split is used")
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no_bf16", action="store_true", help="leave bfloat16 out, as where the chip has none")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.no_bf16 |= not has_bfloat16(torch.device(device))
    encoder = load_encoder(arguments.model).to(device).eval()
    task = load_task(arguments.task) if arguments.task else None
    if task:
        texts = [list(task.corpus.values())[: arguments.documents], list(task.queries.values())[: arguments.queries]]
    else:
        texts = list(drawn(encoder, arguments.documents, arguments.queries))
    found, sweep = engines(encoder, not arguments.no_bf16, [part[: max(32, len(part) // 4)] for part in texts], texts)
    batch = min(sweep, key=sweep.get)
    where = f"{device} ({platform.machine()}), torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{len(texts[0]):,} documents, {len(texts[1]):,} queries, {where}; best batch of theirs: {batch}")
    runs: dict[str, list[tuple]] = {name: [] for name in found}
    for _ in range(arguments.rounds):
        for name, work in found.items():
            runs[name].append(work())
    rows = report(runs, texts, task)
    if arguments.json:
        facts = {"batch": batch, "device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
        facts |= {"model": arguments.model, "task": arguments.task, "documents": len(texts[0])}
        facts |= {"queries": len(texts[1]), "engines": rows}
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
