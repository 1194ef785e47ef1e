"""What ends a run before its time, and what is then said: a signal, a loss that broke, too little memory."""

import os
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from koir.errors import RunError
from koir.gather import leave_processes, world_size

RESUME = "--resume_from_checkpoint last"
CALMER = "finite numbers: nothing was saved at this step; resume from the last checkpoint with a lower --learning_rate"


class StopOnSignal(TrainerCallback):
    """SIGTERM (a preempted node) ends training after the step that runs, with a checkpoint."""

    def __init__(self):
        self.signalled = self.stopping = False  # stopping: all processes are
        self.before = signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, *_) -> None:
        self.signalled = True

    def on_step_end(self, args, state, control, **_):
        """All processes stop at the same step: one that was signalled stops the others.

        A signal that comes while they ask each other is remembered for the next step.
        """
        stop = self.signalled
        if world_size() > 1:
            seen = torch.tensor(int(stop), device=args.device)
            dist.all_reduce(seen, op=dist.ReduceOp.MAX)
            stop = bool(seen)
        if stop:
            self.signalled = self.stopping = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args, state, control, **_):
        """The Trainer ends the epoch where it stops; its scores, if they are due, are made when the run goes on."""
        if self.stopping:  # with its checkpoint written
            control.should_evaluate = control.should_save = False

    def exit_if_signalled(self, folder: Path) -> None:
        """Leave with status 143 and the words to resume with, so that no script goes on with half a model.

        From here on a signal ends the process at once, as it did before.
        """
        signal.signal(signal.SIGTERM, self.before)
        if self.signalled:
            leave_processes()  # the first to end ends the others, which may still be writing
            if int(os.environ.get("RANK", 0)) == 0:
                print(f"stopped by SIGTERM; {to_resume(folder)}", flush=True)
            raise SystemExit(128 + signal.SIGTERM)


def to_resume(folder: Path) -> str:
    """The words that say how a run goes on."""
    return f"resume with --output_dir {shlex.quote(str(folder))} {RESUME}"


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has a checkpoint to resume from."""
    return any((folder / "checkpoints").glob("checkpoint-*/trainer_state.json"))


def refuse_broken_gradient(step: int, model: torch.nn.Module) -> None:
    """Raise RunError, naming a parameter, where a gradient is not finite; the last checkpoint stays good."""
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    norms = torch.stack(torch._foreach_norm([gradient for _, gradient in named]))
    if not torch.isfinite(norms).all():
        name = named[int((~torch.isfinite(norms)).nonzero()[0])][0]
        raise RunError(f"step {step}", f"a gradient of {name} that is not finite", CALMER)


class StopOnBrokenGradient(TrainerCallback):
    """A norm of DeepSpeed's that is not finite ends the run before anything is saved. engine: its own, or None yet."""

    def __init__(self, engine: Callable[[], object | None]):
        self.engine = engine

    def on_step_end(self, args, state, control, **_):
        """DeepSpeed's step is done, or was skipped, by the time its norm is known; nothing is saved yet."""
        engine = self.engine()
        norm = None if engine is None or args.fp16 else engine.get_global_grad_norm()
        if norm is not None and not 0 <= float(norm) < float("inf"):  # it says -1 or inf of what is not finite
            raise RunError(f"step {state.global_step}", "gradients that are not finite", CALMER)


def refuse_broken(step: int, embeddings: torch.Tensor, chunks: list[dict], tokenizer) -> None:
    """Raise RunError, with chunk and text, when an embedding [U, D] of this process is not finite.

    chunks: padded inputs of the U texts in the same order.
    """
    broken = (~torch.isfinite(embeddings.detach()).all(1)).nonzero().flatten().tolist()
    if broken:
        found = f"{len(broken)} embeddings that are not finite; first: {_place(broken[0], chunks, tokenizer)}"
        raise RunError(f"step {step}", found, CALMER)


def broken_loss(step: int, loss: float, broken: Sequence[int], what: str, chunks: list[dict], tokenizer) -> RunError:
    """The error that names, beside a loss that is not finite, what broke it.

    broken: rows of all chunks' inputs together, each the text of one `what`; there may be none.
    """
    found = f"a loss of {loss}"
    if broken:
        found += f", of {len(broken)} {what}; first: {_place(broken[0], chunks, tokenizer)}"
    return RunError(f"step {step}", found, CALMER)


def _place(row: int, chunks: list[dict], tokenizer) -> str:
    """Chunk and text of a row of all chunks' inputs together."""
    for number, chunk in enumerate(chunks, 1):
        if row < len(chunk["input_ids"]):
            text = tokenizer.decode(chunk["input_ids"][row], skip_special_tokens=True)
            return f"chunk {number} of {len(chunks)}, text {text[:60]!r}"
        row -= len(chunk["input_ids"])
    return "a repeat that keeps ranks in step"


def smaller_budget(folder: Path, chunk_tokens: int, keep_tokens: int, longest: int) -> RunError:
    """The error that names the budget to resume with, half of what did not fit.

    Where $KOIR_RETRY names a file (finetune.sh --auto_retry), the flags to go on with are written to it.
    """
    if keep_tokens == 0 and chunk_tokens <= longest:
        return RunError("memory", f"none left with --chunk_tokens {chunk_tokens}, one long text at a time",
                        "a shorter --max_seq_length, a smaller model, or --activation_checkpointing true")  # fmt: skip
    flags = ["--output_dir", str(folder), "--chunk_tokens", str(min(chunk_tokens, max(chunk_tokens // 2, longest)))]
    half = keep_tokens // 2 if keep_tokens >= 2 * chunk_tokens else 0  # less is hardly a chunk
    flags += ["--cache_keep_tokens", str(half)] if keep_tokens else []
    if has_checkpoint(folder):
        flags += RESUME.split()
    if retry := os.environ.get("KOIR_RETRY"):
        Path(retry).write_text("".join(f"{flag}\n" for flag in flags), encoding="utf-8")
    found = f"none left with --chunk_tokens {chunk_tokens} --cache_keep_tokens {keep_tokens}"
    return RunError("memory", found, f"less: the same command with {shlex.join(flags)}")
