"""Pairs a second: koir's Reranker.score against sentence-transformers' CrossEncoder.predict, same weights and texts.

    .venv/bin/python benchmarks/rerank.py [--task FOLDER] [--model PATH] [--json FILE]

Both get one saved model folder, in one process, warm, with the same threads; they run in turn, --rounds times, and each
one's fastest run counts. CrossEncoder runs with its default batch size (32) and with the best of a sweep. Differences
are of raw logits. Without --task, texts are cut from the bundled corpus to the real lengths in benchmarks/lengths.json;
with it, pairs are queries and their BM25 candidates, and nDCG@10 is compared too. Without --model, weights are random.
"""

import argparse
import functools
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, XLMRobertaConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.evaluation.tasks import Task, load_task
from koir.kernels.bfloat16 import has_bfloat16
from koir.manifest import DEMO, cache_folder
from koir.reranker import Reranker, load_reranker

HERE = Path(__file__).parent
BATCHES = (8, 16, 32, 64)


def random_model(layers: int, dimensions: int, length: int) -> Reranker:
    """A cross-encoder from a fixed seed over the demo's tokenizer; weights wide enough that scores differ."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=dimensions, num_hidden_layers=layers, num_labels=1, pad_token_id=1,
        num_attention_heads=dimensions // 64, intermediate_size=4 * dimensions, max_position_embeddings=514,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.classifier.out_proj.weight, std=0.25)
    return Reranker(model, tokenizer, length)


def sampled_pairs(count: int, tokenizer, seed: int) -> list[tuple[str, str]]:
    """Texts out of the bundled corpus, cut to token lengths of real queries and documents."""
    lengths = json.loads((HERE / "lengths.json").read_text(encoding="utf-8"))["lengths"]
    corpus = list(load_task("demo").corpus.values())
    draw = random.Random(seed)
    draw.shuffle(corpus)
    stream = [token for ids in tokenizer(corpus, add_special_tokens=False)["input_ids"] for token in ids]

    def text(tokens: int) -> str:
        start = draw.randrange(len(stream) - tokens)
        return tokenizer.decode(stream[start : start + tokens])

    return [(text(max(query - 4, 1)), text(max(document - 4, 1))) for query, document, _ in lengths[:count]]


def task_pairs(task: Task, depth: int, count: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(query text, document text) and (query id, document id) of BM25's candidates for the task's first queries."""
    from koir.retrieval.stages import first_stage  # here, since without --task torch and transformers suffice

    queries = dict(list(task.queries.items())[: max(count // depth, 1)])
    found = first_stage("bm25", progress=False)(task.corpus).search(list(queries.values()), depth)
    keys = [(query, document) for query, run in zip(queries, found, strict=True) for document in run]
    return [(queries[query], task.corpus[document]) for query, document in keys], keys


def ndcg(task: Task, keys: Sequence[tuple[str, str]], scores: np.ndarray) -> float:
    """nDCG@10 of the queries among `keys`, reranked by scores."""
    from koir.evaluation.metrics import evaluate_run, mean_scores

    run: dict[str, dict[str, float]] = {}
    for (query, document), score in zip(keys, scores.tolist(), strict=True):
        run.setdefault(query, {})[document] = score
    return mean_scores(evaluate_run({query: task.qrels[query] for query in run}, run))["ndcg_at_10"]


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds and result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def spent(predict: Callable, sample: list, batch_size: int) -> float:
    """Seconds of CrossEncoder with a batch size, once warm."""
    predict(sample[:2])
    return timed(lambda: predict(sample, batch_size=batch_size))[0]


def engines(folder: str, pairs: list, chunk_tokens: int | None, device: str, half: bool) -> dict[str, Callable]:
    """Name -> a call that scores all pairs; the best batch size of theirs is found on an eighth of the pairs."""
    from sentence_transformers import CrossEncoder

    ours = load_reranker(folder).to(device)
    settings = {} if chunk_tokens is None else {"chunk_tokens": chunk_tokens}
    found: dict[str, Callable] = {"koir fp32": lambda: ours.score(pairs, **settings)}
    raw, sample = torch.nn.Identity(), random.Random(0).sample(pairs, min(len(pairs), max(len(pairs) // 8, 16)))
    for name, kwargs in (("fp32", {}), ("bf16", {"model_kwargs": {"dtype": torch.bfloat16}}))[: 2 if half else 1]:
        theirs = CrossEncoder(folder, device=device, **kwargs)
        call = functools.partial(theirs.predict, activation_fn=raw, show_progress_bar=False)
        found[f"CrossEncoder {name}, batch 32"] = functools.partial(call, pairs)
        best = min(BATCHES, key=functools.partial(spent, call, sample))
        if best != 32:
            found[f"CrossEncoder {name}, batch {best}"] = functools.partial(call, pairs, batch_size=best)
    if half:
        found["koir bf16"] = lambda: ours.score(pairs, bf16=True, **settings)
    return found


def measure(found: dict[str, Callable], rounds: int) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Seconds of every round, and scores, of each engine; they run in turn."""
    seconds, scores = {name: [] for name in found}, {}
    for _ in range(rounds):
        for name, work in found.items():
            spent, scores[name] = timed(work)
            seconds[name].append(spent)
    return seconds, scores


def report(pairs: list, seconds: dict, scores: dict, task: Task | None, keys: list) -> dict:
    """Print the table; returns what it shows."""
    default = "CrossEncoder fp32, batch 32"
    rivals = {name: min(spent) for name, spent in seconds.items() if name.startswith("CrossEncoder fp32")}
    rows = {}
    print(f"{'':<28} {'pairs/s':>8} {'to batch 32':>12} {'to its best':>12} {'max |diff|':>11} {'nDCG@10':>8}")
    for name, spent in seconds.items():
        row = {"pairs_per_second": len(pairs) / min(spent), "ratio": rivals[default] / min(spent)}
        row |= {"ratio_to_best": min(rivals.values()) / min(spent), "all_seconds": spent}
        row["largest_difference"] = float(np.abs(scores[name] - scores[default]).max())
        row["ndcg_at_10"] = ndcg(task, keys, scores[name]) if task else None
        quality = f"{row['ndcg_at_10']:.4f}" if task else "-"
        print(f"{name:<28} {row['pairs_per_second']:>8.1f} {row['ratio']:>12.2f} {row['ratio_to_best']:>12.2f} "
              f"{row['largest_difference']:>11.1e} {quality:>8}")  # fmt: skip
        rows[name] = row
    return rows


def parser() -> argparse.ArgumentParser:
    """The flags and their defaults."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--task", help="a BEIR folder; default: texts of real lengths")
    flags.add_argument("--split", default="dev", help="split of the task")
    flags.add_argument("--depth", type=int, default=20, help="candidates a query of the task")
    flags.add_argument("--model", help="a reranker; default: random weights")
    flags.add_argument("--layers", type=int, default=4)
    flags.add_argument("--dimensions", type=int, default=256)
    flags.add_argument("--max_seq_length", type=int, default=512, help="tokens a pair")
    flags.add_argument("--pairs", type=int, default=512, help="at most so many pairs")
    flags.add_argument("--chunk_tokens", type=int, help="padded tokens a chunk; default: Reranker.score's")
    flags.add_argument("--no_bf16", action="store_true", help="leave bfloat16 out, as where the chip has none")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--json", type=Path)
    return flags


def main() -> None:
    """Print the table, and write it with --json."""
    arguments = parser().parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.no_bf16 |= not has_bfloat16(torch.device(device))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        model = (
            load_reranker(arguments.model, arguments.max_seq_length)
            if arguments.model
            else random_model(arguments.layers, arguments.dimensions, arguments.max_seq_length)
        )
        model.save(Path(folder) / "model")
        task, keys = load_task(arguments.task, arguments.split) if arguments.task else None, []
        if task:
            pairs, keys = task_pairs(task, arguments.depth, arguments.pairs)
        else:
            pairs = sampled_pairs(arguments.pairs, model.tokenizer, 0)
        tokens = model.chunks(pairs, 10**9)[2]
        facts = {"pairs": len(pairs), "tokens": tokens, "device": device, "threads": torch.get_num_threads()}
        facts |= {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        }
        facts |= {name: value for name, value in vars(arguments).items() if name != "json"}
        print(json.dumps(facts, ensure_ascii=False))
        found = engines(str(Path(folder) / "model"), pairs, arguments.chunk_tokens, device, not arguments.no_bf16)
        rows = report(pairs, *measure(found, arguments.rounds), task, keys)
    if arguments.json:
        arguments.json.write_text(json.dumps(facts | {"engines": rows}, ensure_ascii=False, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
