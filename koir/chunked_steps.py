"""What a step over chunks needs of its trainer: the gradient cache, one reduction, as many chunks as other ranks."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from koir.gather import average_gradients, gather_sizes, share
from koir.gradcache import GradientCache
from koir.lanes import Twin, twin_of, two_threads


class ChunkedSteps:
    """For a Trainer to inherit from, beside the Hugging Face one."""

    _reduction: contextlib.ExitStack | None = None  # open while DeepSpeed holds reductions back
    _twin: Twin | None = None
    _has_no_twin = False  # the model's own doing
    largest_batch = 0  # padded tokens

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

    def gradient_cache(self, backward: Callable[[torch.Tensor], None], chunks: list[dict]) -> GradientCache:
        """Of the model for these chunks, as --cache_keep_tokens and --compile say; with a twin for a second thread."""
        step, model = self.step_arguments, self.accelerator.unwrap_model(self.model)
        self.largest_batch = max(self.largest_batch, sum(chunk["input_ids"].numel() for chunk in chunks))
        if self._twin is None and not self._has_no_twin and two_threads(self.args):
            self._twin = twin_of(model)
            self._has_no_twin = self._twin is None
        twin = self._twin and self._twin.refreshed()

        def encode(chunk: dict, model: torch.nn.Module = model) -> torch.Tensor:
            return model([chunk])

        return GradientCache(encode, backward, step.cache_keep_tokens, step.compile, twin)

    def share(self, items: Sequence, compute: Callable[[Sequence], np.ndarray]) -> np.ndarray:
        """compute(items) [len(items), ...], shared by processes; not under ZeRO 3, whose forwards are collectives."""
        return compute(items) if is_deepspeed_zero3_enabled() else share(items, compute)

    def same_number_of_chunks(self, chunks: list[dict]) -> list[dict]:
        """Chunks, and under ZeRO 3, where every forward is a collective, as many one-text repeats as other ranks need.

        The loss never sees the repeats, so their gradient is zero.
        """
        if not is_deepspeed_zero3_enabled():
            return chunks
        most = max(count for (count,) in gather_sizes(len(chunks)))
        filler = {name: tensor[:1] for name, tensor in chunks[-1].items()}
        return chunks + [filler] * (most - len(chunks))
