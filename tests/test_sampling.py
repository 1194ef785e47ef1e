"""Whole global batches of one source, the same for every seed and epoch, dealt to processes as accelerate does."""

from collections import Counter

import pytest
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from torch.utils.data import BatchSampler

from koir.errors import FlagError
from koir.sampling import OneSourceBatches, ProcessBatches, RandomOrder, shares

SOURCES = ["법령"] * 40 + ["위키"] * 17 + ["판례"] * 8 + ["뉴스"] * 3 + [None] * 6


def order(epoch=0, alpha=1.0, batch=8, seed=3, sources=SOURCES):
    return list(OneSourceBatches(sources, batch, alpha, seed, lambda: epoch, say=False))


def batches(rows, size=8):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_a_batch_is_of_one_source_and_an_epoch_one_pass():
    rows = order()
    pooled = {"뉴스", None}
    for batch in batches(rows):
        sources = {SOURCES[row] for row in batch}
        assert len(batch) == 8 and (len(sources) == 1 or sources <= pooled)
    assert len(set(rows)) == len(rows) == 72  # 40, 16 of 17, 8, 8 of the 9 that share batches


def test_an_epoch_of_sources_that_fill_no_whole_number_of_batches_repeats_nothing(capsys):
    rows = order(batch=1000, sources=["가"] * 1900 + ["나"] * 1900 + ["다"] * 1900)
    assert len(rows) == len(set(rows)) == 3000
    OneSourceBatches(["가"] * 1900 + ["나"] * 1100, 1000, 1.0, 3, lambda: 0)
    assert capsys.readouterr().err == "note: 1,000 rows, other ones each epoch, fill no whole batch of their source\n"
    rows = order(batch=10, sources=[str(number) for number in range(5) for _ in range(19)] + ["큰"] * 60)
    assert len(rows) == len(set(rows)) == 110  # a share in proportion would give some of 19 rows two batches


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_process_gets_its_part_of_the_same_source(processes):
    def dealt(process, skip=0):
        sampler = OneSourceBatches(SOURCES, 8, 1.0, 3, lambda: 0, say=False)
        shard = BatchSamplerShard(BatchSampler(sampler, 8 // processes, False), processes, process)
        return list(SkipBatchSampler(shard, skip))

    parts = [dealt(process) for process in range(processes)]
    assert {len(part) for part in parts} == {9}
    joined = [sum(batch, []) for batch in zip(*parts, strict=True)]
    assert joined == batches(order())
    assert [dealt(process, skip=4) for process in range(processes)] == [part[4:] for part in parts]


def test_the_order_is_the_seeds_and_the_epochs():
    assert order(epoch=1) == order(epoch=1)
    assert order(epoch=1) != order(epoch=0) != order(seed=4)
    assert set().union(*(order(epoch=epoch) for epoch in range(40))) == set(range(74))  # none is always left over
    met = [row < 40 for row in order(sources=["큰"] * 40 + ["작은"] * 40)[::8]]
    assert met != sorted(met) != met[::-1]  # sources come mixed
    shuffled = [list(RandomOrder(20, seed, lambda epoch=epoch: epoch)) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert all(sorted(rows) == list(range(20)) for rows in shuffled) and len(set(map(tuple, shuffled))) == 3


def test_alpha_decides_how_often_a_source_comes():
    sources = ["큰"] * 800 + ["작은"] * 8
    counts = {}
    for alpha in (1.0, 0.5, 0.0):
        rows = order(alpha=alpha, sources=sources)
        counts[alpha] = Counter(sources[batch[0]] for batch in batches(rows))
        assert len(rows) == 808
        for batch in batches(rows):
            assert len(set(batch)) == 8
    small = [tuple(batch) for batch in batches(rows) if batch[0] >= 800]
    assert len(set(small)) > 40  # each time round in a new order
    assert (counts[1.0]["작은"], counts[0.5]["작은"], counts[0.0]["작은"]) == (1, 9, 50)
    assert shares([800**0.5, 8**0.5], 101) == [92, 9] and shares([1, 1, 1], 5) == [2, 2, 1]
    assert shares([8**0.5, 800**0.5], 101) == [9, 92]


def test_small_sources_are_said(capsys):
    OneSourceBatches(["큰"] * 9 + ["작은"] * 3, 8, 1.0, 3, lambda: 0)
    assert "1 sources smaller than a batch (3 rows) are left out" in capsys.readouterr().err
    OneSourceBatches(SOURCES, 8, 1.0, 3, lambda: 0)
    assert "2 sources smaller than a batch (9 rows) share batches" in capsys.readouterr().err
    OneSourceBatches(["하나"] * 4 + ["둘"] * 4, 8, 1.0, 3, lambda: 0)
    assert capsys.readouterr().err == "note: 2 sources smaller than a batch (8 rows) share batches\n"
    OneSourceBatches(["큰"] * 19, 8, 0.5, 3, lambda: 0)
    assert capsys.readouterr().err == ""  # rows left over are said of one pass alone
    assert sorted(order(sources=["하나"] * 4 + ["둘"] * 4)) == list(range(8)) and not capsys.readouterr().err
    with pytest.raises(FlagError, match="--batch_by source: found no source with 8 rows"):
        OneSourceBatches(["작은"] * 7, 8, 1.0, 3, lambda: 0)


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 13, 22])
def test_processes_share_the_last_rows_of_a_pass(rows):
    order = RandomOrder(rows, 0, lambda: 0)
    parts = [list(ProcessBatches(order, 4, 3, process)) for process in range(3)]
    assert {len(part) for part in parts} == {len(ProcessBatches(order, 4, 3, 0))} == {-(-rows // 12)}
    dealt = [row for batch in zip(*parts, strict=True) for part in batch for row in part]
    assert dealt[:rows] == list(order)
    assert len(dealt) == max(rows, 3) or rows % 12 in (1, 2)  # fewer than processes: filled up to one each
    assert dealt[rows:] == [dealt[n % rows] for n in range(len(dealt) - rows)]  # by the order's first
    sizes = [len(part[-1]) for part in parts]
    assert max(sizes) - min(sizes) <= 1 <= min(sizes)
    whole = [list(ProcessBatches(order, 4, 3, process, drop_last=True)) for process in range(3)]
    assert {len(batch) for part in whole for batch in part} <= {4} and len(whole[0]) == rows // 12
