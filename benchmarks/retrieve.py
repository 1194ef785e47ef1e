"""Encode a corpus and search it: koir against SentenceTransformer.encode and sentence_transformers' semantic_search.

    .venv/bin/python benchmarks/retrieve.py [--model PATH] [--task BEIR] [--documents N] [--queries N] [--json FILE]

Both get the same weights, float32, device and threads in one process, warm; sentence-transformers is swept over its
batch sizes first and keeps its best. Then both run in turn, --rounds times, and each one's fastest round counts.
Without --task, texts of random Korean words have the lengths of benchmarks/lengths.json. Scores of the ten best
documents of each query are compared.
"""

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer, util

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.encoder import Encoder, load_encoder  # noqa: E402
from koir.evaluation.tasks import load_task  # noqa: E402
from koir.retrieval.dense import Dense  # noqa: E402

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


def ours(encoder: Encoder, documents: list[str], queries: list[str]) -> tuple[float, float, list[dict]]:
    """Seconds to embed the corpus, seconds to embed and search the queries, and what was found."""
    started = time.perf_counter()
    index = Dense.build(encoder, {f"{n:09}": text for n, text in enumerate(documents)}, "dense")
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


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="run folder, model folder, hub name or demo")
    parser.add_argument("--task", help="BEIR folder, whose test split is used")
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(arguments.model).to(device).eval()
    if arguments.task:
        task = load_task(arguments.task)
        texts = list(task.corpus.values())[: arguments.documents], list(task.queries.values())[: arguments.queries]
    else:
        texts = drawn(encoder, arguments.documents, arguments.queries)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder) / "model")
        model = SentenceTransformer(str(Path(folder) / "model"), device=device)
    few = [part[: max(32, len(part) // 4)] for part in texts]
    sweep = {batch: sum(theirs(model, *few, batch)[:2]) for batch in BATCHES}
    batch = min(sweep, key=sweep.get)
    ours(encoder, *few)
    rounds = [(ours(encoder, *texts), theirs(model, *texts, batch)) for _ in range(arguments.rounds)]
    best = [min((pair[side] for pair in rounds), key=lambda run: run[0] + run[1]) for side in (0, 1)]
    apart = max(abs(a[d] - b[d]) for a, b in zip(best[0][2], best[1][2], strict=True) for d in a.keys() & b.keys())
    same = sum(a.keys() == b.keys() for a, b in zip(best[0][2], best[1][2], strict=True))
    where = f"float32 on {device} ({platform.machine()}), torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{len(texts[0]):,} documents, {len(texts[1]):,} queries, {where}; best batch of theirs: {batch}")
    print(f"{'':24}{'corpus s':>10}{'queries s':>11}{'texts/s':>9}")
    facts = {}
    for name, (corpus, queries, _) in zip(("koir", "sentence-transformers"), best, strict=True):
        speed = (len(texts[0]) + len(texts[1])) / (corpus + queries)
        facts[name] = {"corpus_seconds": corpus, "query_seconds": queries, "texts_per_second": speed}
        print(f"{name:24}{corpus:>10.2f}{queries:>11.2f}{speed:>9.1f}")
    ratio = facts["koir"]["texts_per_second"] / facts["sentence-transformers"]["texts_per_second"]
    print(f"{ratio:.2f}x; same ten documents for {same} of {len(texts[1])} queries, scores at most {apart:.1e} apart")
    if arguments.json:
        facts |= {"ratio": ratio, "batch": batch, "device": device, "torch": torch.__version__}
        facts |= {"documents": len(texts[0]), "queries": len(texts[1]), "same": same, "scores_apart": apart}
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
