"""The Hugging Face Trainer as every run uses it: dev scores, metrics.jsonl, going on where a run stopped."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import ProgressCallback, Trainer
from transformers.trainer_callback import PrinterCallback, TrainerState

from koir.arguments import TrainingArguments
from koir.chunked_steps import ChunkedSteps
from koir.errors import FlagError
from koir.evaluation.tasks import Task
from koir.gather import from_first, rank, world_size
from koir.runs.checkpoints import Checkpoints
from koir.runs.folder import (
    has_scores,
    read_counters,
    read_state,
    remove_half_written,
    set_aside_later,
)
from koir.runs.interruptions import refuse_broken_gradient
from koir.runs.progress import Progress
from koir.sampling import ProcessBatches


class RunTrainer(ChunkedSteps, Checkpoints, Trainer):
    """What encoders and rerankers share. A subclass has the loss, counts `tokens` and `steps`, and has `dev_scores`.

    model: an Encoder or Reranker: a module with `transformer`, `tokenizer` and `save`. rows: what the collator is given
    records of. `began`: what a run and its checkpoints must have in common. COUNTED: attributes that a resumed run
    counts on.
    """

    COUNTED: tuple[str, ...] = ("all_tokens", "training_seconds", "steps", "seconds")

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        rows: Dataset,
        collator: Callable[[list[dict]], dict],
        dev_tasks: list[Task],
    ):
        self.dev_tasks = dev_tasks
        super().__init__(model=model, args=args, train_dataset=rows, eval_dataset=dev_tasks, data_collator=collator)
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.progress = Progress()
        self.add_callback(self.progress)
        self.began: dict[str, object] = {}
        self._late = False  # whether the first scores are those that a signal cut off
        self.metrics_file = Path(args.output_dir) / "metrics.jsonl"
        self.started = self.ticked = time.perf_counter()
        self.tokens = self.all_tokens = self.steps = 0
        self.training_seconds = self.earlier_seconds = 0.0
        self.paused = 0.0  # seconds spent on dev scores since the last line, not to be counted as training

    def train(self, resume_from_checkpoint: str | None = None):
        """As the Trainer's, but dev scores begin at step 0, with what training starts from.

        A checkpoint of the last step is taken as it is: the Trainer would make one more. What is said when it ends
        early stands on a line of its own, below the bar.
        """
        self.args.eval_on_start = self.args.eval_strategy != "no" and resume_from_checkpoint is None
        main, done = self.is_world_process_zero(), False
        if main:
            remove_half_written(Path(self.args.output_dir))
        if resume_from_checkpoint:
            counted = read_counters(resume_from_checkpoint, self.began)
            for name in counted.keys() & set(self.COUNTED):
                setattr(self, name, counted[name])
            state = read_state(Path(resume_from_checkpoint))
            if main:
                set_aside_later(Path(resume_from_checkpoint), Path(self.args.output_dir))
            done = self._is_done(state) and not self.is_deepspeed_enabled
            self.args.eval_on_start = self._late = self._score_is_due(state)
        elif world_size() > 1:
            torch.manual_seed(self.args.seed + self.args.process_index)  # dropout of its own; resuming, from the states
        try:
            if done:
                return self._take(state, resume_from_checkpoint)
            return super().train(resume_from_checkpoint=resume_from_checkpoint)
        finally:
            self.progress.close()

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer's, but a pass's last rows are split over the processes, not filled up with others."""
        loader = super().get_train_dataloader()
        if world_size() > 1:
            shard = loader.batch_sampler
            order, drop = shard.batch_sampler.sampler, self.args.dataloader_drop_last
            shard.batch_sampler = ProcessBatches(order, self._train_batch_size, world_size(), rank(), drop)
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False  # it passes them on
        return loader

    def _take(self, state: TrainerState, checkpoint: str) -> None:
        """The model of the last step's checkpoint, or the best one, once dev scores that are due are made."""
        self.state = state
        if self._late:
            self._load_from_checkpoint(checkpoint)
            state.is_world_process_zero = self.is_world_process_zero()  # as its file says, that of the first
            self.control = self.callback_handler.on_train_begin(self.args, state, self.control)
            self.evaluate()
            if state.best_global_step == state.global_step:
                state.best_model_checkpoint = checkpoint
        self._load_from_checkpoint(self._best_checkpoint() or checkpoint)

    def _is_done(self, state: TrainerState) -> bool:
        """Whether a checkpoint's state is that of the last step."""
        if self.args.max_steps > 0:
            return state.global_step >= self.args.max_steps
        return state.epoch >= self.args.num_train_epochs

    def _score_is_due(self, state: TrainerState) -> bool:
        """Whether a signal cut off the dev scores of the step that a checkpoint was written after."""
        args, by_steps = self.args, self.args.eval_strategy == "steps"
        if args.eval_strategy == "no" or not state.global_step or has_scores(state):
            return False
        beyond = state.global_step % state.eval_steps if by_steps else state.epoch % 1
        reached = state.global_step if by_steps else state.epoch
        return reached >= args.eval_delay and (not beyond or self._is_done(state))

    @property
    def seconds(self) -> float:
        """Since the run began, without what lay between an interruption and its resuming."""
        return self.earlier_seconds + time.perf_counter() - self.started

    @seconds.setter
    def seconds(self, earlier: float) -> None:
        self.earlier_seconds = earlier

    def facts(self) -> dict:
        """What run.json says of the training itself."""
        tokens, seconds = self.all_tokens + self.tokens, self.training_seconds
        if self.tokens:  # no line told of them (--logging_strategy no)
            seconds += time.perf_counter() - self.ticked - self.paused
        speed = tokens * world_size() / max(seconds, 1e-9)
        return {"steps": self.state.global_step, "tokens_per_second": speed}

    def dev_scores(self) -> dict[str, float]:
        """`<task>/ndcg_at_10` of each dev task with the model as it is now."""
        raise NotImplementedError

    def evaluate(self, *_, **__) -> dict[str, float]:
        """Scores of the dev tasks and their mean; the Trainer calls it as --eval_strategy says."""
        paused = time.perf_counter()
        with self.uncompiled():
            found = self.dev_scores()
        found = from_first(lambda: found)  # from them all processes decide alike
        if len(found) > 1:
            found["mean/ndcg_at_10"] = sum(found.values()) / len(found)
        scores = {f"eval_{name}": value for name, value in found.items()}
        self.paused += time.perf_counter() - paused
        self.log(scores)
        self._warn(found)
        if self._late:  # the Trainer takes no best from scores at the start
            self._late = False
            self._determine_best_metric(scores, None)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def uncompiled(self) -> contextlib.AbstractContextManager:
        """For dev scores: with --compile, a context in which layers run as they are.

        Texts come in other shapes there, and compiling for those takes longer than the scores do.
        """
        compiled = getattr(getattr(self, "step_arguments", None), "compile", False)
        return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()

    def rivals(self) -> dict[str, dict[str, float]]:
        """What dev scores are held against: what it is called -> the same scores of it."""
        base = next((line for line in self.state.log_history if line["step"] == 0), {})
        return {"its base": {name.removeprefix("eval_"): value for name, value in base.items()}}

    def _warn(self, found: dict[str, float]) -> None:
        """A line for each dev score below a rival's; at step 0 nothing is tuned yet."""
        for called, scores in self.rivals().items() if self.state.global_step else ():
            for name, value in found.items():
                if value < scores.get(name, value):
                    self.progress.say(
                        f"WARNING: at step {self.state.global_step} {name} is {value:.3f}, worse than {called} "
                        f"({scores[name]:.3f})"
                    )

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
            line["seconds"] = self.seconds
            line = {name: None if _broken(value) else value for name, value in line.items()}  # JSON has no such number
            with self.metrics_file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")

    def _clip_grad_norm(self, model: torch.nn.Module):
        self._refuse_broken_gradient(model)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: float | None = None):
        if grad_norm is None:
            self._refuse_broken_gradient(model)
        return super()._get_grad_norm(model, grad_norm)

    def _refuse_broken_gradient(self, model: torch.nn.Module) -> None:
        """Before the Trainer scales all gradients by their norm, which would spread what is not finite.

        Under fp16 the scaler skips such steps by itself; of DeepSpeed's gradients only the norm is to be had.
        """
        if not (self.args.fp16 or self.is_deepspeed_enabled):
            refuse_broken_gradient(self.state.global_step + 1, model)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """As the Trainer's; an optimizer that is not to be had is a FlagError."""
        with _refused("--optim", self.args.optim):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs) -> object:
        """As the Trainer's; a schedule that lacks --lr_scheduler_kwargs is a FlagError."""
        with _refused("--lr_scheduler_type", self.args.lr_scheduler_type):
            return super().create_scheduler(*args, **kwargs)


def _broken(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


@contextlib.contextmanager
def _refused(flag: str, value: object) -> Iterator[None]:
    try:
        yield
    except (ImportError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise FlagError(
            f"{flag} {getattr(value, 'value', value)}", why, "one that is installed, and what it needs"
        ) from None
