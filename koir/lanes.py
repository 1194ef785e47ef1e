"""A step's chunks on a CPU in two threads, each with half of the cores, which one chunk alone would leave waiting.

Between two products a chunk is Python's and one core's (benchmarks/results/train-step-cpu.md); another chunk computes
meanwhile, since torch lets Python's lock go.
"""

import copy
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from transformers import TrainingArguments

from koir.errors import out_of_memory

LANES = 2


class Twin:
    """A model with the weights of another and gradients of its own, for the second thread."""

    def __init__(self, model: nn.Module):
        self.of = model
        known = {id(model.tokenizer): model.tokenizer}
        known |= {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
        self.model = copy.deepcopy(model, known)
        self.fits = True  # until its model is found to draw more at random than dropout masks

    def refreshed(self) -> "Twin":
        """The same, as its model is now: training or not, and with weights that were put in the place of others.

        Gradients that a step left, since something ended it, are forgotten.
        """
        self.model.train(self.of.training)
        for own, other in self._pairs():
            own.data, own.grad = other.data, None
            own.requires_grad_(other.requires_grad)
        return self

    def hand_over(self) -> None:
        """Add the gradients to the model's, and forget them."""
        for own, other in self._pairs():
            if own.grad is not None:
                other.grad = own.grad if other.grad is None else other.grad.add_(own.grad)
                own.grad = None

    def _pairs(self) -> zip:
        return zip(self.model.parameters(), self.of.parameters(), strict=True)


def twin_of(model: nn.Module) -> Twin | None:
    """A model's twin; None, and a line that says so, for one that holds what cannot be copied."""
    try:
        return Twin(model)
    except Exception as error:  # whatever a model's own code holds
        if out_of_memory(error):
            raise
        found = " ".join(str(error).split())[:200]
        print(f"note: chunks run in one thread, since the model cannot be copied ({found})", file=sys.stderr)
        return None


def two_threads(args: TrainingArguments) -> bool:
    """Whether the cached steps of a training run in two threads, where its model allows.

    Not under DeepSpeed, which hangs on its own model, nor with activation checkpointing, whose second forward takes its
    dropout masks from torch's generator.
    """
    return pays(args.device) and not (args.deepspeed or args.activation_checkpointing)


def pays(device: torch.device) -> bool:
    """Whether two threads find cores to compute on."""
    return device.type == "cpu" and torch.get_num_threads() >= LANES


def side_by_side(work: Callable[[int, int], None], numbers: Iterable[int]) -> None:
    """Call work(lane, number) for every number: the even ones in this thread, lane 0, the odd ones in another, lane 1.

    So sums over a lane's numbers are the same each time. What one of them raises ends the other after the call it is
    in, and is raised here. `work` brings its own autocast and grad mode.
    """
    cores, ended = torch.get_num_threads(), threading.Event()

    def run(lane: int) -> None:
        torch.set_num_threads(cores // LANES)  # of this thread
        try:
            for number in numbers:
                if number % LANES == lane and not ended.is_set():
                    work(lane, number)
        except BaseException:
            ended.set()
            raise

    try:
        with ThreadPoolExecutor(1, "koir-lane") as pool:
            try:
                other = pool.submit(run, 1)
                run(0)
                other.result()
            except BaseException:  # Ctrl-C too, while this thread only waits
                ended.set()
                raise
    finally:
        torch.set_num_threads(cores)
