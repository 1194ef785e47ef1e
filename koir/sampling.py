"""Which rows meet in a batch: any, or those of one source; the same order for the same seed, epoch and rows."""

import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from koir.errors import FlagError


class RandomOrder(Sampler):
    """All rows in an order drawn from (seed, epoch), so that a resumed run goes on where it was cut."""

    def __init__(self, rows: int, seed: int, epoch: Callable[[], int]):
        self.rows, self.seed, self.epoch = rows, seed, epoch

    def generator(self) -> torch.Generator:
        """Draws this epoch's order, and nothing else."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.rows, generator=self.generator()).tolist()


class OneSourceBatches(RandomOrder):
    """An order in which every `batch` rows, the global batch of all processes, are of one source.

    An epoch has as many batches as the sources fill. At alpha 1 it is one pass over the rows, less what fills no whole
    batch of its source; below 1 each source has a share in proportion to rows^alpha: small sources come more often,
    and begin anew, in a new order, when their rows run out. Sources smaller than a batch share one pool, and rows
    that would be repeated within a batch are not: a pool smaller than a batch is left out. Both are said on stderr.
    """

    def __init__(
        self, sources: Sequence[str | None], batch: int, alpha: float, seed: int, epoch: Callable[[], int], say=True
    ):
        """sources: each row's. batch: rows of all processes together. Raises FlagError where no source fills one."""
        super().__init__(0, seed, epoch)
        self.batch = batch
        members: dict[str, list[int]] = {}
        for row, source in enumerate(sources):
            members.setdefault(source or "unnamed", []).append(row)
        small = [name for name in members if len(members[name]) < batch]
        pool = sorted(row for name in small for row in members.pop(name))
        if pool and say:
            what = "share batches" if len(pool) >= batch else "are left out"
            print(f"note: {len(small)} sources smaller than a batch ({len(pool):,} rows) {what}", file=sys.stderr)
        if len(pool) >= batch:
            members["the small ones together"] = pool
        if not members:
            found = f"no source with {batch:,} rows"
            raise FlagError("--batch_by source", found, "a batch over all processes that one source can fill")
        self.members = [torch.tensor(rows) for rows in members.values()]
        self.batches = [len(rows) // batch for rows in self.members]
        if alpha < 1:
            self.batches = shares([len(rows) ** alpha for rows in self.members], sum(self.batches))
        self.rows = sum(self.batches) * batch
        if (left := sum(map(len, self.members)) - self.rows) and alpha == 1 and say:
            print(f"note: {left:,} rows, other ones each epoch, fill no whole batch of their source", file=sys.stderr)

    def __iter__(self) -> Iterator[int]:
        generator = self.generator()
        turns = torch.tensor([source for source, count in enumerate(self.batches) for _ in range(count)])
        streams = [self._batches(rows, generator) for rows in self.members]
        for source in turns[torch.randperm(len(turns), generator=generator)].tolist():
            yield from next(streams[source])

    def _batches(self, rows: torch.Tensor, generator: torch.Generator) -> Iterator[list[int]]:
        whole = len(rows) // self.batch * self.batch
        while True:
            order = rows[torch.randperm(len(rows), generator=generator)][:whole]
            yield from order.view(-1, self.batch).tolist()


class ProcessBatches(Sampler):
    """This process's part of each global batch of an order; of a pass's last batch an equal share, or one row less.

    Where fewer rows than processes are left, the order's first ones join them, for each process needs one.
    """

    def __init__(self, order: RandomOrder, rows: int, processes: int, process: int, drop_last: bool = False):
        """rows: of a process in a whole batch."""
        self.order, self.processes, self.process, self.drop_last = order, processes, process, drop_last
        self.batch_size, self.batch = rows, rows * processes

    def __len__(self) -> int:
        return (len(self.order) + (0 if self.drop_last else self.batch - 1)) // self.batch

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        for start in range(0, len(self) * self.batch, self.batch):
            rows = order[start : start + self.batch]
            rows += [order[n % len(order)] for n in range(self.processes - len(rows))]
            yield torch.tensor(rows).tensor_split(self.processes)[self.process].tolist()


def shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` split in proportion to `weights` into whole numbers, the largest remainders rounded up."""
    exact = [weight / sum(weights) * total for weight in weights]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: parts[n] - exact[n])
    for n in by_remainder[: total - sum(parts)]:
        parts[n] += 1
    return parts
