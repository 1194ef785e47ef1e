"""Rows of all processes, with exact gradients back to the process that computed them."""

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of training processes; 1 when torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def leave_processes() -> None:
    """Wait for the other processes and part from them: a group that still lives at exit can abort its process."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def gather_sizes(*sizes: int, device: torch.device | str = "cpu") -> list[list[int]]:
    """The given numbers of every process, by rank, in one exchange."""
    if world_size() == 1:
        return [list(sizes)]
    parts = [torch.empty(len(sizes), dtype=torch.long, device=device) for _ in range(world_size())]
    dist.all_gather(parts, torch.tensor(sizes, device=device))
    return [part.tolist() for part in parts]


def gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """[n, ...] of every process, concatenated by rank. Differentiable: each row's gradients are summed over processes.

    counts: the rows of each process, by rank (from `gather_sizes`); they may differ.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows, counts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # [max n, ...]
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])  # [sum n, ...]

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)  # every process scored these rows: the true gradient is the sum
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]], None


def average_gradients(parameters: list[torch.nn.Parameter], bucket_bytes: int = 64 * 2**20) -> None:
    """Replace every gradient by its mean over processes, one all-reduce a bucket."""
    if world_size() == 1:
        return
    gradients = [p.grad if p.grad is not None else _zero_gradient(p) for p in parameters if p.requires_grad]
    bucket: list[torch.Tensor] = []
    for position, gradient in enumerate(gradients):
        bucket.append(gradient)
        size = sum(g.numel() * g.element_size() for g in bucket)
        last = position + 1 == len(gradients)
        if last or size >= bucket_bytes or gradients[position + 1].dtype != gradient.dtype:
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat)
            flat /= world_size()
            for g, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                g.copy_(part.view_as(g))
            bucket = []


def _zero_gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
