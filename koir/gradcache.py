"""The cached step (Gao et al. 2021, arXiv:2101.06983): any batch in the memory of one chunk, the same gradients."""

import contextlib
import ctypes
import functools
import mmap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.checkpoint import get_device_states, set_device_states

GROWTH = 1 / 4  # of the process at first, before freed memory goes back to the system
CHANGED = 16  # bytes of a random state: more than its counters have


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    """glibc's `malloc_trim`; elsewhere nothing."""
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)


def _resident() -> int:
    """Bytes of this process in memory; 0 where Linux does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


class Heap:
    """Freed memory of a CPU, returned to the system where it would only be held.

    Chunks of one shape go where those before them were; each new shape leaves holes, and a larger batch has more.
    """

    def __init__(self):
        self.least = self.room = 0  # bytes: after the last return, and by how much the process may grow from there
        self.shape = None  # of the last chunk

    def make_room(self, chunk: dict[str, torch.Tensor]) -> None:
        """To be called before a chunk: return what is free, if its shape is new or the process has grown.

        New is what the last chunk's was not; grown is by GROWTH of the first size since the last return.
        """
        if chunk["input_ids"].device.type != "cpu":
            return
        shape, self.shape = self.shape, chunk["input_ids"].shape
        if shape != self.shape or _resident() > self.least + self.room:
            _malloc_trim()(0)
            self.least = _resident()
            self.room = self.room or GROWTH * self.least


class RandomStates:
    """The states of the random generators before each of `count` chunks, to draw the same dropout masks again.

    The CPU's has 5 KB, of which a few bytes change until it is filled anew, every two dozen chunks: those bytes are
    held, in memory allocated beforehand, since what lies between thousands of small blocks that stay is not used again.
    """

    def __init__(self, count: int):
        self.whole: list[torch.Tensor] = []
        self.near: list[int] = []  # which of the whole states each chunk's is like
        self.places = torch.zeros(count, CHANGED, dtype=torch.int16)
        self.values = torch.zeros(count, CHANGED, dtype=torch.uint8)
        self.devices: list[tuple] = []

    def remember(self, chunk: dict[str, torch.Tensor]) -> None:
        """Hold the states as they are now, of the CPU and of the chunk's device."""
        state, number = torch.get_rng_state(), len(self.near)
        changed = (state != self.whole[-1]).nonzero()[:, 0] if self.whole else None
        if changed is None or len(changed) > CHANGED:
            self.whole.append(state)
            changed = torch.empty(0, dtype=torch.long)
        self.near.append(len(self.whole) - 1)
        self.values[number] = state[0]  # of place 0, which the rest of `places` names
        self.places[number, : len(changed)], self.values[number, : len(changed)] = changed, state[changed]
        self.devices.append(get_device_states(*chunk.values()))

    @contextlib.contextmanager
    def replay(self, number: int) -> Iterator[None]:
        """A context in which the generators run from the states of chunk `number`; they are put back afterwards."""
        devices, states = self.devices[number]
        with torch.random.fork_rng(devices=devices, enabled=True):
            state = self.whole[self.near[number]].clone()
            state[self.places[number].long()] = self.values[number]
            torch.set_rng_state(state)
            set_device_states(devices, states)
            yield


class GradientCache:
    """One optimisation step's gradients over chunks of texts, in the memory of one chunk and of what is kept.

    encode: chunk (input_ids, attention_mask, each [n, T]) -> embeddings [n, D], with dropout.
    backward: called once a chunk with a scalar; the caller puts precision scaling and engines there.
    keep_tokens: the graphs of the first chunks, up to so many padded tokens, stay in memory and are not run again.
    one_code: make the first pass's graphs too and drop them, for an encode that is compiled: with and without gradients
    it is other code, which may draw other dropout masks.

    The steps are `embed`, `loss_gradients`, `replay`; `__call__` does them in turn. Gradients are added to the
    parameters' `.grad`; stepping the optimizer and averaging over processes is left to the caller.
    """

    def __init__(
        self,
        encode: Callable[[dict], torch.Tensor],
        backward: Callable[[torch.Tensor], None],
        keep_tokens: int = 0,
        one_code: bool = False,
    ):
        self.encode, self.backward, self.keep_tokens, self.one_code = encode, backward, keep_tokens, one_code
        self.heap = Heap()

    def __call__(self, chunks: Sequence[dict], loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Add the gradients of `loss(all embeddings [U, D])` to the parameters; returns the loss, detached."""
        embeddings, kept, states = self.embed(chunks)
        sizes = [len(chunk["input_ids"]) for chunk in chunks]
        value, gradients = self.loss_gradients(embeddings, loss)
        del embeddings  # as large as the gradients, and no longer wanted
        self.replay(chunks, kept, states, gradients.split(sizes))
        return value

    def embed(self, chunks: Sequence[dict]) -> tuple[torch.Tensor, list[torch.Tensor | None], RandomStates]:
        """All outputs, [U, D] or [U]; each chunk's own with its graph where it is kept, else None; random states."""
        sizes = [len(chunk["input_ids"]) for chunk in chunks]
        embeddings, kept, states, room = None, [], RandomStates(len(chunks)), self.keep_tokens
        for chunk in chunks:
            room -= chunk["input_ids"].numel()
            states.remember(chunk)
            with torch.set_grad_enabled(self.one_code or room >= 0):
                output = self.encode(chunk)  # [n, D]
            if embeddings is None:
                embeddings = output.new_empty(sum(sizes), *output.shape[1:])  # [U, D], beforehand as random states are
                rows = iter(embeddings.split(sizes))
            next(rows).copy_(output.detach())
            kept.append(output if room >= 0 and output.requires_grad else None)
            del output
        return embeddings, kept, states

    def loss_gradients(self, embeddings: torch.Tensor, loss: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and its gradient [U, D] with respect to the embeddings [U, D], encoder not involved."""
        leaves = embeddings.requires_grad_()  # [U, D]
        value = loss(leaves)
        (gradients,) = torch.autograd.grad(value, leaves)  # [U, D]
        return value.detach(), gradients

    def replay(
        self,
        chunks: Sequence[dict],
        kept: list[torch.Tensor | None],
        states: RandomStates,
        gradients: Sequence[torch.Tensor],
    ) -> None:
        """Push each chunk's cached gradients [n, D] through it, run again with its own dropout masks unless kept."""
        for number, (chunk, gradient) in enumerate(zip(chunks, gradients, strict=True)):
            output, kept[number] = kept[number], None  # a kept graph is freed as soon as it is used
            again = output is None
            if again:
                self.heap.make_room(chunk)
                with states.replay(number):
                    output = self.encode(chunk)  # [n, D]
            self.backward((output * gradient).sum())  # its derivative is gradient . d output / d parameters
            if again:
                del output
