"""Rows of all processes, with exact gradients back to the process that computed them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

BUCKET_BYTES = 64 * 2**20  # of gradients in one all-reduce
PART = 4096  # items that a process computes between two exchanges, to bound what the device holds

Made = TypeVar("Made")


def world_size() -> int:
    """Number of training processes; 1 when torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def meet() -> None:
    """Wait for the other processes."""
    if world_size() > 1:
        dist.barrier()


def leave_processes() -> None:
    """Wait for the other processes and part from them: a group that still lives at exit can abort its process."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _device() -> torch.device | str:
    """Where tensors lie that processes exchange: gloo's in memory, NCCL's and others' on the device alone."""
    return "cpu" if "gloo" in dist.get_backend() else torch.accelerator.current_accelerator() or "cpu"


def gather_sizes(*sizes: int) -> list[list[int]]:
    """The given numbers of every process, by rank, in one exchange."""
    if world_size() == 1:
        return [list(sizes)]
    found = torch.empty(world_size() * len(sizes), dtype=torch.long, device=_device())
    dist.all_gather_single(found, torch.tensor(sizes, device=_device()))
    return [part.tolist() for part in found.chunk(world_size())]


def sum_over_processes(*counts: int) -> list[int]:
    """The sum of each number over all processes, in one exchange."""
    return [sum(of_ranks) for of_ranks in zip(*gather_sizes(*counts), strict=True)]


def from_first(make: Callable[[], Made]) -> Made:
    """What `make` makes in the first process, in all of them; the others wait."""
    box = [make() if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def share(items: Sequence, compute: Callable[[Sequence], np.ndarray]) -> np.ndarray:
    """compute(items) [len(items), ...], of which each process computes a part: all call it with the same items."""
    if world_size() == 1:
        return compute(items)
    step, found = PART * world_size(), []
    for start in range(0, max(len(items), 1), step):
        parts = [items[first : start + step : world_size()] for first in range(start, start + world_size())]
        sizes = [len(part) for part in parts]
        (rows,) = gather_rows([torch.from_numpy(compute(parts[rank()])).to(_device())], [sizes])  # [n, ...]
        rows = rows.cpu().numpy()
        found.append(np.empty_like(rows))
        for number, part in enumerate(np.split(rows, np.cumsum(sizes)[:-1])):
            found[-1][number :: world_size()] = part
    return np.concatenate(found)


def gather_rows(groups: Sequence[torch.Tensor], counts: Sequence[list[int]]) -> list[torch.Tensor]:
    """Groups of rows [n, ...], each of every process and concatenated by rank, in one exchange for all groups.

    The groups have one dtype and one row shape. counts: of each group the rows of each process, by rank (from
    `gather_sizes`); they may differ. Differentiable: each row's gradients are summed over processes, and come back in
    one exchange for all groups too.
    """
    return list(groups) if world_size() == 1 else list(_GatherRows.apply([*counts], *groups))


class _GatherRows(torch.autograd.Function):
    """Between processes travels one block [T, ...] of each: its groups one after another, padded to the largest."""

    @staticmethod
    def forward(ctx, counts: list[list[int]], *groups: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.counts = counts
        totals = [sum(of_rank) for of_rank in zip(*counts, strict=True)]
        block = groups[0].new_zeros(max(totals), *groups[0].shape[1:])  # [T, ...]
        torch.cat([group.detach() for group in groups], out=block[: totals[rank()]])
        blocks = block.new_empty(len(totals) * len(block), *block.shape[1:])  # [W * T, ...]
        dist.all_gather_single(blocks, block)
        by_rank = [
            part.split(of_rank) for part, of_rank in zip(_cut(blocks, totals), zip(*counts, strict=True), strict=True)
        ]
        return tuple(torch.cat(group) for group in zip(*by_rank, strict=True))  # each [sum n, ...]

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        totals = [sum(of_rank) for of_rank in zip(*ctx.counts, strict=True)]
        blocks = gradients[0].new_zeros(len(totals) * max(totals), *gradients[0].shape[1:])  # [W * T, ...]
        parts = zip(*[g.split(of_group) for g, of_group in zip(gradients, ctx.counts, strict=True)], strict=True)
        for space, of_rank in zip(_cut(blocks, totals), parts, strict=True):
            torch.cat(of_rank, out=space)
        total = blocks.new_empty(max(totals), *blocks.shape[1:])  # [T, ...]
        dist.reduce_scatter_single(total, blocks)  # every process scored these rows: the true gradient is the sum
        return None, *total[: totals[rank()]].split([of_group[rank()] for of_group in ctx.counts])


def _cut(blocks: torch.Tensor, totals: list[int]) -> list[torch.Tensor]:
    """Views of what each process sent, without its padding."""
    return [part[:total] for part, total in zip(blocks.chunk(len(totals)), totals, strict=True)]


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over processes, one all-reduce a bucket.

    A parameter that no process has a gradient for keeps none: with zeros in its place weight decay would move it.
    """
    if world_size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    there = torch.tensor([p.grad is not None for p in trained]).to(trained[0])  # [P]; in the first bucket
    gradients = [there, *(p.grad if p.grad is not None else _zero_gradient(p) for p in trained)]
    bucket: list[torch.Tensor] = []
    for position, gradient in enumerate(gradients):
        bucket.append(gradient)
        size = sum(g.numel() * g.element_size() for g in bucket)
        last = position + 1 == len(gradients)
        if last or size >= BUCKET_BYTES or gradients[position + 1].dtype != gradient.dtype:
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat)
            flat /= world_size()
            for g, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                g.copy_(part.view_as(g))
            bucket = []
    for parameter, of_any in zip(trained, there.tolist(), strict=True):
        if not of_any:
            parameter.grad = None


def _zero_gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
