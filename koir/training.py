"""What v1 and v1.1 share around the step: batches, the loss over processes, dev scores, metrics.jsonl, saving."""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import ProgressCallback, Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_callback import PrinterCallback

from koir.arguments import TrainingArguments
from koir.batches import Collator
from koir.contrast import Contrast
from koir.encoder import Encoder
from koir.evaluation import pipeline
from koir.gather import average_gradients, gather_sizes, world_size
from koir.interruptions import refuse_broken, refuse_broken_loss
from koir.retrieval import stages
from koir.sampling import OneSourceBatches, RandomOrder
from koir.triplets import Triplets


class EmbeddingTrainer(Trainer):
    """The Hugging Face Trainer around a bi-encoder; v1 and v1.1 add their step and nothing else."""

    def __init__(self, encoder: Encoder, args: TrainingArguments, triplets: Triplets, groups: dict):
        self.loss_arguments, self.step_arguments = groups["loss"], groups.get("step")
        self.dev_tasks = groups["dev_tasks"]
        data, guide = groups["data"], groups.get("guide")
        distillation = self.loss_arguments.distillation is not None
        collator = Collator(encoder, groups["chunks"].chunk_tokens, data.max_hard_negatives, guide, distillation)
        super().__init__(
            model=encoder, args=args, train_dataset=triplets.pairs, eval_dataset=self.dev_tasks, data_collator=collator
        )
        self.sampling, self.tokenizer = data, encoder.tokenizer
        self.judged = Contrast(self.loss_arguments, guide, self.accelerator.autocast)
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
        """The loss of this process's rows against all texts of the global batch, as `Contrast` scales it."""
        step = self.state.global_step + 1
        refuse_broken(step, embeddings, batch["chunks"], self.tokenizer)
        loss, negatives = self.judged(embeddings, batch)
        refuse_broken_loss(step, loss)
        self.negatives = self.negatives + negatives
        self.steps += 1
        self.tokens += batch["tokens"]
        return loss

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
        negatives = float(self.negatives) / max(self.steps, 1)
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

    def _get_train_sampler(self, train_dataset: object = None) -> RandomOrder:
        rows, epoch = self.train_dataset, lambda: int(self.state.epoch or 0)
        if self.sampling.batch_by == "random":
            return RandomOrder(len(rows), self.args.seed, epoch)
        batch = self.args.train_batch_size * world_size()
        say = self.is_world_process_zero()
        return OneSourceBatches(rows["source"], batch, self.sampling.source_alpha, self.args.seed, epoch, say)

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
