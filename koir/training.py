"""What v1 and v1.1 share around the step: batches, the loss over processes, dev scores, metrics.jsonl, saving."""

import contextlib
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import ProgressCallback, Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_callback import PrinterCallback

from koir.arguments import TrainingArguments
from koir.encoder import Encoder
from koir.evaluation import pipeline
from koir.gather import average_gradients, gather_rows, gather_sizes, rank, world_size
from koir.losses import info_nce
from koir.retrieval import stages
from koir.tokens import chunked, tokenise
from koir.triplets import Triplets, text_hash


class Collator:
    """Rows of one process's batch -> chunks of its distinct texts, and where query and document columns find them.

    chunks: padded inputs of the U distinct texts, longest first; inverse [U] undoes the sorting.
    query [b], document [n], target [b]: positions in U of queries and columns; target is each query's own column.
    query_hash [b], document_hash [n], known [b, P]: text hashes, `known` the right answers of each row (0 pads).
    """

    def __init__(self, encoder: Encoder, chunk_tokens: int, max_hard_negatives: int | None = None):
        self.encoder, self.chunk_tokens, self.max_hard_negatives = encoder, chunk_tokens, max_hard_negatives

    def __call__(self, rows: Sequence[dict]) -> dict:
        """b rows of `triplets.SCHEMA` to one batch."""
        position: dict[str, int] = {}

        def place(kind: str, text: str) -> int:
            return position.setdefault(self.encoder.prompts[kind] + text, len(position))

        negatives = [text for row in rows for text in row["hard_negatives"][: self.max_hard_negatives]]
        documents = [row["document"] for row in rows] + negatives  # own document first, so target is 0..b-1
        batch = {
            "query": [place("query", row["query"]) for row in rows],
            "document": [place("document", text) for text in documents],
            "target": list(range(len(rows))),
            "query_hash": [text_hash(row["query"]) for row in rows],
            "document_hash": [text_hash(text) for text in documents],
            "known": _padded([row["right_answers"] for row in rows]),
        }
        sequences = tokenise(self.encoder.tokenizer, list(position), self.encoder.max_seq_length)
        chunks, inverse = chunked(sequences, self.encoder.tokenizer.pad_token_id, self.chunk_tokens)
        batch = {name: torch.tensor(value) for name, value in batch.items()}
        return batch | {"chunks": chunks, "inverse": inverse, "tokens": sum(map(len, sequences))}


def _padded(lists: Sequence[Sequence[int]]) -> list[list[int]]:
    longest = max(map(len, lists))
    return [list(items) + [0] * (longest - len(items)) for items in lists]


def merged_answers(query_hash: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The right answers of all rows that ask the same query, given to each of them.

    query_hash: [B]. known: [B, P] hashes, 0 pads. Returns [B, P'] with P' as large as the largest union.
    """
    answers: dict[int, set[int]] = {}
    rows = list(zip(query_hash.tolist(), known.tolist(), strict=True))
    for query, hashes in rows:
        answers.setdefault(query, set()).update(hashes)
    if len(answers) == len(rows):
        return known
    return torch.tensor(_padded([sorted(answers[query]) for query, _ in rows]), device=known.device)


def mean_negatives(known: torch.Tensor, document_hashes: torch.Tensor) -> float:
    """How many of the N columns a query is scored against as negatives, on average over the b rows.

    known: [b, P] hashes of right answers, 0 pads. document_hashes: [N].
    """
    columns = Counter(document_hashes.tolist())
    right = sum(columns[answer] for answers in known.tolist() for answer in set(answers))
    return len(document_hashes) - right / len(known)


class EmbeddingTrainer(Trainer):
    """The Hugging Face Trainer around a bi-encoder; v1 and v1.1 add their step and nothing else."""

    def __init__(self, encoder: Encoder, args: TrainingArguments, triplets: Triplets, groups: dict):
        self.loss_arguments, self.step_arguments = groups["loss"], groups.get("step")
        self.dev_tasks = groups["dev_tasks"]
        collator = Collator(encoder, groups["chunks"].chunk_tokens, groups["data"].max_hard_negatives)
        super().__init__(
            model=encoder, args=args, train_dataset=triplets.pairs, eval_dataset=self.dev_tasks, data_collator=collator
        )
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.add_callback(_Progress)
        self._reduction: contextlib.ExitStack | None = None  # open while DeepSpeed holds reductions back
        self.metrics_file = Path(args.output_dir) / "metrics.jsonl"
        self.started = self.ticked = time.perf_counter()
        self.tokens = self.all_tokens = self.steps = self.negatives = 0
        self.training_seconds = 0.0
        self.paused = 0.0  # seconds spent on dev scores since the last line, not to be counted as training

    def contrast(self, embeddings: torch.Tensor, batch: dict) -> torch.Tensor:
        """The InfoNCE of this process's queries against every document of the global batch.

        embeddings: [U, D] of this process's distinct texts, in the order of `batch["chunks"]`. The value is
        W * (sum over local queries) / B, so that its mean over the W processes is the mean over all B queries, and
        the mean of its gradients, which is what data-parallel reducers take, is the gradient of that mean.
        """
        embeddings = embeddings[batch["inverse"]]  # [U, D]; repeats that fill up chunks, at the end, are never read
        sizes = gather_sizes(*batch["known"].shape, len(batch["document"]), device=embeddings.device)
        queries, answers, columns = (list(size) for size in zip(*sizes, strict=True))
        known = torch.nn.functional.pad(batch["known"], (0, max(answers) - batch["known"].shape[1]))  # [b, P]
        known = merged_answers(gather_rows(batch["query_hash"], queries), gather_rows(known, queries))  # [B, P]
        first_query, first_column = sum(queries[: rank()]), sum(columns[: rank()])
        known = known[first_query : first_query + queries[rank()]]  # [b, P]
        hashes = gather_rows(batch["document_hash"], columns)  # [N]
        documents = gather_rows(embeddings[batch["document"]], columns)  # [N, D]
        self.negatives += mean_negatives(known, hashes)
        self.steps += 1
        self.tokens += batch["tokens"]
        return info_nce(
            embeddings[batch["query"]],
            documents,
            batch["target"] + first_column,
            self.loss_arguments.temperature,
            known,
            hashes,
            normalizer=sum(queries) / world_size(),
        )

    @contextlib.contextmanager
    def one_reduction(self, model: torch.nn.Module) -> Iterator[Callable[[torch.Tensor], None]]:
        """Yields a backward to be called any number of times; gradients meet other processes' once, at the step's end.

        Inside, gradients only add up locally, over accumulated batches too. At the end of the last of them they are
        averaged bucket by bucket, or, under DeepSpeed, reduced and partitioned in one pass before its step.
        """
        if not self.is_deepspeed_enabled:
            yield self.accelerator.backward
            if self.accelerator.sync_gradients:
                average_gradients(list(self.model.parameters()))
            return
        if self._reduction is None:
            self._reduction = contextlib.ExitStack()
            model.set_gradient_accumulation_boundary(True)  # we call its step at boundaries only
            self._reduction.enter_context(model.coalesce_grad_reduction())
        yield functools.partial(model.backward, scale_wrt_gas=False)
        if self.accelerator.sync_gradients:
            self._reduction.close()
            self._reduction = None
            model.step()

    def same_number_of_chunks(self, chunks: list[dict]) -> list[dict]:
        """Chunks, and under ZeRO 3, where every forward is a collective, as many one-text repeats as other ranks need.

        The loss never sees the repeats, so their gradient is zero.
        """
        if not is_deepspeed_zero3_enabled():
            return chunks
        most = max(count for (count,) in gather_sizes(len(chunks), device=self.args.device))
        filler = {name: tensor[:1] for name, tensor in chunks[-1].items()}
        return chunks + [filler] * (most - len(chunks))

    def facts(self) -> dict:
        """What run.json says of the training itself; negatives_per_query leaves right answers out."""
        speed = self.all_tokens * world_size() / max(self.training_seconds, 1e-9)
        negatives = self.negatives / max(self.steps, 1)
        return {"negatives_per_query": negatives, "steps": self.state.global_step, "tokens_per_second": speed}

    def evaluate(self, *_, **__) -> dict[str, float]:
        """nDCG@10 of the dev tasks; the Trainer calls it as --eval_strategy says."""
        paused = time.perf_counter()
        encoder = self.accelerator.unwrap_model(self.model)
        scores = {}
        for task in self.dev_tasks:
            done = pipeline.evaluate_first_stage(stages.in_memory(encoder), task, "dense")
            (row,) = done.content["scores"][task.split]
            scores[f"eval_{task.name}/ndcg_at_10"] = row["ndcg_at_10"]
        if len(scores) > 1:
            scores["eval_mean/ndcg_at_10"] = sum(scores.values()) / len(scores)
        self.paused += time.perf_counter() - paused
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed, then to the Trainer's reporters and one line to metrics.jsonl."""
        if "loss" in logs:
            now = time.perf_counter()
            spent = max(now - self.ticked - self.paused, 1e-9)
            logs["tokens_per_second"] = self.tokens * world_size() / spent
            self.all_tokens, self.training_seconds = self.all_tokens + self.tokens, self.training_seconds + spent
            self.ticked, self.tokens, self.paused = now, 0, 0.0
        super().log(logs, start_time)
        if self.is_world_process_zero() and "train_runtime" not in logs:
            line = {"step": self.state.global_step, "epoch": self.state.epoch}
            line |= {name.removeprefix("eval_"): value for name, value in logs.items() if name != "epoch"}
            line["seconds"] = time.perf_counter() - self.started
            with self.metrics_file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")

    def _get_output_dir(self, trial: object = None) -> str:
        return str(Path(self.args.output_dir) / "checkpoints")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save(Path(output_dir), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        from safetensors.torch import load_file

        weights = load_file(Path(resume_from_checkpoint) / "model.safetensors")
        self.model.transformer.load_state_dict(weights)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


class _Progress(ProgressCallback):
    """One bar: steps, time left, loss, tokens a second, the newest dev scores."""

    def __init__(self):
        super().__init__()
        self.shown: dict[str, str] = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "loss" in logs:
            self.shown |= {"loss": f"{logs['loss']:.3f}", "tokens/s": f"{logs['tokens_per_second']:,.0f}"}
        scores = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if scores:
            line = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            self.training_bar.write(f"step {state.global_step}: {line}", file=sys.stderr)
        self.training_bar.set_postfix(self.shown)
