"""The queue in front of a model: what goes together, what is computed once, who leaves, what is tried again."""

import asyncio
import threading

import numpy as np
import pytest

from koir.serving.batching import SMALL_CHUNK, Batcher
from koir.serving.problems import Problem


class Device:
    """A forward that records its chunks, waits at a gate, and gives each item's first number."""

    def __init__(self, held=True, memory=10**9):
        self.chunks, self.gate, self.memory = [], threading.Event(), memory
        if not held:
            self.gate.set()

    def __call__(self, items):
        self.chunks.append(items)
        assert self.gate.wait(10)
        if len(items) * max(map(len, items)) > self.memory:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return np.array([item[0] for item in items])


def texts(*lengths, first=0):
    """Items whose first number is their own."""
    return [(first + number, *[0] * (length - 1)) for number, length in enumerate(lengths)]


def run(device, scenario, chunk_tokens=1000, **settings):
    """Run `await scenario(batcher)`, and its answer."""

    async def inside():
        batcher = Batcher(device, chunk_tokens, **settings)
        try:
            return await asyncio.wait_for(scenario(batcher), 20)
        finally:
            device.gate.set()
            batcher.close()

    return asyncio.run(inside())


def put(batcher, items):
    return asyncio.ensure_future(batcher.run(items, [len(item) for item in items]))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_rows_come_back_in_order_whatever_the_chunks():
    items = texts(*np.random.default_rng(0).integers(1, 300, 200).tolist())
    device = Device(held=False)

    async def scenario(batcher):
        return await batcher.run(items, [len(item) for item in items])

    assert run(device, scenario) == list(range(200))
    for chunk in device.chunks:
        padded = len(chunk) * max(map(len, chunk))
        assert padded <= 1000
        assert padded <= SMALL_CHUNK or sum(map(len, chunk)) >= 0.75 * padded


def test_an_idle_device_starts_at_once_and_then_takes_all_that_came():
    device = Device()

    async def scenario(batcher):
        waiting = [put(batcher, texts(10))]
        await until(lambda: device.chunks)
        waiting += [put(batcher, texts(10, 11, first=100 * caller)) for caller in range(1, 5)]
        await asyncio.sleep(0.02)
        device.gate.set()
        return await asyncio.gather(*waiting)

    assert run(device, scenario) == [[0], [100, 101], [200, 201], [300, 301], [400, 401]]
    assert [len(chunk) for chunk in device.chunks] == [1, 8]


def test_equal_items_of_different_calls_are_computed_once():
    device = Device()

    async def scenario(batcher):
        calls = [put(batcher, texts(5, 6) + texts(5)) for _ in range(4)]
        await until(lambda: device.chunks)
        calls.append(put(batcher, texts(5)))  # while it is being computed
        await asyncio.sleep(0.01)
        device.gate.set()
        return await asyncio.gather(*calls)

    assert run(device, scenario) == [[0, 1, 0]] * 4 + [[0]]
    assert sum(map(len, device.chunks)) == 2


def test_a_small_call_does_not_wait_for_a_large_one():
    device = Device()

    async def scenario(batcher):
        large = put(batcher, texts(*[100] * 500))
        await until(lambda: device.chunks)
        small = put(batcher, texts(20, first=10**6))
        await asyncio.sleep(0.01)
        device.gate.set()
        assert await small == [10**6]
        chunks = len(device.chunks)
        await large
        return chunks

    assert run(device, scenario) <= 10  # of 50


def test_who_hangs_up_leaves_the_queue():
    device = Device()

    async def scenario(batcher):
        first = put(batcher, texts(10))
        await until(lambda: device.chunks)
        gone, stays = put(batcher, texts(*[30] * 20, first=100)), put(batcher, texts(30, 30, first=119))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        left = batcher.waiting_tokens
        device.gate.set()
        assert await first == [0] and await stays == [119, 120]
        return left, len(batcher.known), len(batcher.calls), len(batcher.shelves)

    assert run(device, scenario) == (60, 0, 0, 0)  # one of the 20 was wanted by the other call too
    assert sum(map(len, device.chunks)) == 3


def test_out_of_memory_halves_the_budget_and_goes_on():
    device = Device(held=False, memory=300)
    items = texts(*[50] * 40)

    async def scenario(batcher):
        rows = await batcher.run(items, [50] * 40)
        return rows, batcher.chunk_tokens, batcher.halved

    rows, budget, halved = run(device, scenario)
    assert rows == list(range(40))
    assert (budget, halved) == (250, 2)


def test_what_never_fits_is_refused_and_the_rest_served():
    device = Device(held=False, memory=300)

    async def scenario(batcher):
        large, small = put(batcher, texts(400)), put(batcher, texts(20, first=7))
        with pytest.raises(Problem, match="memory"):
            await large
        return await small

    assert run(device, scenario) == [7]


def test_an_error_reaches_its_callers_and_no_one_else():
    def broken(items):
        if items[0][0] == 0:
            raise ValueError("a bug")
        return [item[0] for item in items]

    async def scenario(batcher):
        first = put(batcher, texts(5))
        await asyncio.sleep(0.05)
        with pytest.raises(ValueError):
            await first
        return await batcher.run(texts(5, first=3), [5])

    broken.gate = threading.Event()
    assert run(broken, scenario) == [3]


def test_a_full_house_turns_new_calls_away_but_never_halves_one():
    async def scenario(batcher):
        with batcher.admitted(5000):  # more than the queue holds, but it was empty
            with pytest.raises(Problem) as refused, batcher.admitted(1):
                pass
            assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) >= 1
        with batcher.admitted(1):
            return batcher.texts

    assert run(Device(), scenario, max_queue=100) == 1
