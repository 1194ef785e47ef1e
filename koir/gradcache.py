"""The cached step (Gao et al. 2021, arXiv:2101.06983): any batch in a chunk or two of memory, the same gradients."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.checkpoint import get_device_states, set_device_states

from koir.kernels.dropout import OtherMasks, draw_seed, drawn_seeds, given_seeds
from koir.lanes import Twin, side_by_side

CHANGED = 16  # bytes of a random state: more than its counters have


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
        self.seeds: list[Sequence[int]] = []  # of each chunk's dropout masks, where nothing else is drawn

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

    def are_seeds_alone(self, seeds: Sequence[int]) -> bool:
        """Whether a CPU's generator is where it would be had only these been drawn since the first chunk's state."""
        after = torch.get_rng_state()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.whole[0])
            return [draw_seed() for _ in seeds] == seeds and torch.equal(torch.get_rng_state(), after)

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
    """One optimisation step's gradients over chunks of texts, in the memory of one chunk, or two, and of what is kept.

    encode: chunk (input_ids, attention_mask, each [n, T]) -> embeddings [n, D], with dropout.
    backward: called once a chunk with a scalar; the caller puts precision scaling and engines there.
    keep_tokens: the graphs of the first chunks, up to so many padded tokens, stay in memory and are not run again.
    one_code: make the first pass's graphs too and drop them, for an encode that is compiled: with and without gradients
    it is other code, which may draw other dropout masks.
    twin: chunks run two at a time, where koir/kernels/dropout.py draws all that is random: the same masks, and the same
    sums but for their order. Then encode and backward are called in two threads, and in the second as encode(chunk,
    twin's model).

    The steps are `embed`, `loss_gradients`, `replay`; `__call__` does them in turn. Gradients are added to the
    parameters' `.grad`; stepping the optimizer and averaging over processes is left to the caller.
    """

    def __init__(
        self,
        encode: Callable[..., torch.Tensor],
        backward: Callable[[torch.Tensor], None],
        keep_tokens: int = 0,
        one_code: bool = False,
        twin: Twin | None = None,
    ):
        self.encode, self.backward, self.keep_tokens, self.one_code = encode, backward, keep_tokens, one_code
        self.twin = twin
        self.models = ((), () if twin is None else (twin.model,))  # by lane: what encode is given besides a chunk

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
        kept, states = [None] * len(chunks), RandomStates(len(chunks))
        padded = list(itertools.accumulate(chunk["input_ids"].numel() for chunk in chunks))  # tokens up to each chunk

        def run(lane: int, number: int) -> torch.Tensor:
            keep = padded[number] <= self.keep_tokens
            with torch.set_grad_enabled(self.one_code or keep):
                output = self.encode(chunks[number], *self.models[lane])  # [n, D]
            kept[number] = output if keep and output.requires_grad else None
            return output.detach()

        states.remember(chunks[0])
        with drawn_seeds() as seeds:
            first = run(0, 0)  # [n, D]
        embeddings = first.new_empty(sum(sizes), *first.shape[1:])  # [U, D], beforehand as random states are
        parts = embeddings.split(sizes)
        parts[0].copy_(first)
        if self.twin is not None and self.twin.fits and len(chunks) > 2 and states.are_seeds_alone(seeds):
            before = torch.get_rng_state()
            states.seeds = [seeds, *([draw_seed() for _ in seeds] for _ in chunks[1:])]
            after = torch.get_rng_state()

            def beside(lane: int, number: int) -> None:
                with given_seeds(states.seeds[number]):
                    parts[number].copy_(run(lane, number))

            with contextlib.suppress(OtherMasks):
                side_by_side(beside, range(1, len(chunks)))
                if torch.equal(torch.get_rng_state(), after):
                    return embeddings, kept, states
            self.twin.fits, states.seeds = False, []  # other chunks draw otherwise than the first: once more, in turn
            kept[1:] = [None] * (len(chunks) - 1)
            torch.set_rng_state(before)
        for number in range(1, len(chunks)):
            states.remember(chunks[number])
            parts[number].copy_(run(0, number))
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

        def run(lane: int, number: int) -> None:
            output, kept[number] = kept[number], None  # a kept graph is freed as soon as it is used
            if output is None:
                again = given_seeds(states.seeds[number]) if states.seeds else states.replay(number)
                with again:
                    output = self.encode(chunks[number], *self.models[lane])  # [n, D]
            # its derivative is gradient . d output / d parameters
            self.backward((output * gradients[number]).sum())

        if states.seeds:
            side_by_side(run, range(len(chunks)))
            self.twin.hand_over()
            return
        for number in range(len(chunks)):
            run(0, number)
