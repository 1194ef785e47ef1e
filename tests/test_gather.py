import numpy as np
import pytest
import torch

from koir import gather


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("count", [0, 1, 6, 11, 13])
def test_each_process_computes_a_part_of_shared_items_and_all_get_them_in_order(rank, count, monkeypatch):
    items, asked, starts = list(range(count)), [], iter(range(0, 99, 6))

    def compute(part):
        asked.append(part)
        return np.array(part, dtype=np.int64).reshape(-1, 1)

    def gather_rows(groups, counts):
        start = next(starts)
        parts = [items[first : start + 6 : 3] for first in range(start, start + 3)]
        assert counts == [list(map(len, parts))] and groups[0].flatten().tolist() == parts[rank] == asked[-1]
        return [torch.tensor(sum(parts, []), dtype=torch.int64)[:, None]]

    fakes = {"world_size": lambda: 3, "rank": lambda: rank, "gather_rows": gather_rows, "_device": lambda: "cpu"}
    for name, value in (fakes | {"PART": 2}).items():
        monkeypatch.setattr(gather, name, value)
    assert gather.share(items, compute).tolist() == [[item] for item in items]
    assert sum(map(len, asked)) <= count / 3 + 2


@pytest.mark.parametrize(
    ("backend", "accelerator", "device"),
    [("gloo", "cuda", "cpu"), ("cpu:gloo,cuda:nccl", "cuda", "cpu"), ("nccl", "cuda", "cuda"), ("ccl", None, "cpu")],
)
def test_numbers_are_exchanged_where_the_backend_takes_them(backend, accelerator, device, monkeypatch):
    monkeypatch.setattr(gather.dist, "get_backend", lambda: backend)
    found = accelerator and torch.device(accelerator)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
    assert str(gather._device()) == device
