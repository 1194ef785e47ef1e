"""A step's chunks on a CPU in two threads, each with half of the cores, which one chunk alone would leave waiting.

Between two products a chunk is Python's and one core's (benchmarks/results/train-step-cpu.md); another chunk computes
meanwhile, since torch lets Python's lock go.
"""

import copy
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

LANES = 2


class Twin:
    """A model with the weights of another and gradients of its own, for the second thread."""

    def __init__(self, model: nn.Module):
        self.of = model
        known = {id(model.tokenizer): model.tokenizer}
        known |= {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
        self.model = copy.deepcopy(model, known)

    def refreshed(self) -> "Twin":
        """The same, as its model is now: training or not, and with weights that were put in the place of others."""
        self.model.train(self.of.training)
        for own, other in self._pairs():
            own.data = other.data
        return self

    def hand_over(self) -> None:
        """Add the gradients to the model's, and forget them."""
        for own, other in self._pairs():
            if own.grad is not None:
                other.grad = own.grad if other.grad is None else other.grad.add_(own.grad)
                own.grad = None

    def _pairs(self) -> zip:
        return zip(self.model.parameters(), self.of.parameters(), strict=True)


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
            other = pool.submit(run, 1)
            run(0)
        other.result()
    finally:
        torch.set_num_threads(cores)
