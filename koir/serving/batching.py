"""One queue for each model: chunks of like length, filled across requests while the device works."""

import asyncio
import contextlib
import functools
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from koir.errors import out_of_memory
from koir.serving.problems import Problem

PADDING = 0.25  # at most this share of a chunk is padding,
SMALL_CHUNK = 256  # unless the chunk has so few tokens that another forward would cost more
# All of torch's work in a server, whichever model's: each thread that computes has OpenMP threads of its own, and once
# there are more of them than cores, they sleep between products instead of waiting awake.
DEVICE = ThreadPoolExecutor(1, "device")


def on_device(function: Callable, *arguments):
    """Call it in the device's thread, and give what it returns or raise what it raises; never from that thread."""
    return DEVICE.submit(function, *arguments).result()


def queue_full(waiting: int, most: int, seconds: float, what: str = "texts") -> Problem:
    """429. seconds: until what is waiting now will be done."""
    message = f"{waiting:,} {what} are waiting, and the queue holds {most:,}; try again later"
    return Problem(429, message, "queue_full", retry_after=min(max(math.ceil(seconds), 1), 60))


@dataclass(eq=False)
class Work:
    """A distinct token sequence that waits or is being computed. readers: who wants its row, and as which of theirs."""

    item: Hashable
    length: int
    readers: list[tuple["Call", int]] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """Sequences that one request put in together. works: the longest last, which is served first."""

    rows: list
    missing: int
    future: asyncio.Future
    works: list[Work] = field(default_factory=list)


class Batcher:
    """Feeds a model from many requests at once.

    forward: [items] -> one row for each, run in the device's thread. chunk_tokens: padded tokens of one forward; it is
    halved when memory runs out. max_queue: texts in the house beyond which new requests are turned away.
    A chunk is formed when the device is free, or once it has enough waiting to fill one: nobody waits for company.
    """

    def __init__(self, forward: Callable[[list], Sequence], chunk_tokens: int, max_queue: int = 32768):
        self.forward, self.chunk_tokens, self.max_queue = forward, chunk_tokens, max_queue
        self.handed: set[Future] = set()  # chunks that the device has or is about to have
        self.texts = 0  # of admitted requests, from their tokenising to their answer
        self.known: dict[Hashable, Work] = {}  # waiting or running
        self.shelves: dict[int, dict[Work, None]] = {}  # waiting works by length
        self.calls: deque[Call] = deque()  # whose turn it is to be served first
        self.waiting_tokens = self.running = 0
        self.done, self.seconds, self.chunks, self.tokens, self.padded, self.halved = 0, 0.0, 0, 0, 0, 0

    @contextlib.contextmanager
    def admitted(self, texts: int) -> Iterator[None]:
        """Count a request's texts while it is inside. Any number is let in, unless the house is already full: 429."""
        if self.texts >= self.max_queue:
            raise queue_full(self.texts, self.max_queue, self.texts * self.seconds / max(self.done, 1))
        self.texts += texts
        try:
            yield
        finally:
            self.texts -= texts

    async def run(self, items: Sequence[Hashable], lengths: Sequence[int]) -> list:
        """The forward's row for each item, in order; equal items, of other requests too, are computed once.

        When the caller is cancelled, what nobody else wants leaves the queue.
        """
        if not items:
            return []
        call = Call([None] * len(items), len(items), asyncio.get_running_loop().create_future())
        for position, (item, length) in enumerate(zip(items, lengths, strict=True)):
            work = self.known.get(item)
            if work is None:
                work = self.known[item] = Work(item, length)
                self._shelve(work)
            work.readers.append((call, position))
            call.works.append(work)
        call.works = sorted(dict.fromkeys(call.works), key=lambda work: work.length)
        self.calls.append(call)
        self._pump()
        try:
            await call.future
        except asyncio.CancelledError:
            self._leave(call)
            raise
        return call.rows

    def close(self) -> None:
        """Take back the chunks that have not begun; the device's thread goes on for others."""
        for chunk in list(self.handed):
            chunk.cancel()

    def _shelve(self, work: Work) -> None:
        self.shelves.setdefault(work.length, {})[work] = None
        self.waiting_tokens += work.length

    def _unshelve(self, work: Work) -> bool:
        shelf = self.shelves.get(work.length, {})
        if work not in shelf:
            return False
        del shelf[work]
        if not shelf:
            del self.shelves[work.length]
        self.waiting_tokens -= work.length
        return True

    def _leave(self, call: Call) -> None:
        for work in call.works:
            work.readers = [reader for reader in work.readers if reader[0] is not call]
            if not work.readers and self._unshelve(work):
                del self.known[work.item]
        call.works = []

    def _pump(self) -> None:
        """Give the device its next chunk when it is free, and one in advance where there is enough for a full one."""
        while self.shelves and (not self.running or (self.running == 1 and self.waiting_tokens >= self.chunk_tokens)):
            chunk = self._next_chunk()
            self.running += 1
            items = [work.item for work in chunk]
            handed = DEVICE.submit(self._timed, items)
            self.handed.add(handed)
            handed.add_done_callback(self.handed.discard)
            asyncio.wrap_future(handed).add_done_callback(functools.partial(self._delivered, chunk))
        if not self.shelves:
            self.calls.clear()  # whose works are all running or done

    def _timed(self, items: list) -> Sequence:
        started = time.perf_counter()
        try:
            return self.forward(items)
        finally:
            self.seconds += time.perf_counter() - started

    def _next_chunk(self) -> list[Work]:
        """The longest waiting work of the call whose turn it is, and what is a little shorter, whoever sent it."""
        first = None
        while first is None:  # shelves are not empty, so some call has waiting work
            call = self.calls.popleft()
            while call.works and first is None:
                work = call.works.pop()
                first = work if self._unshelve(work) else None
            if first is not None:
                call.works.append(first)  # until its row is there, cancelling must find it
                self.calls.append(call)
        chunk, width, tokens = [first], first.length, first.length
        for length in sorted((length for length in self.shelves if length <= width), reverse=True):
            for work in list(itertools.islice(self.shelves[length], self.chunk_tokens // width + 1)):
                padded = (len(chunk) + 1) * width
                if padded > self.chunk_tokens:
                    return self._counted(chunk, width, tokens)
                if padded > SMALL_CHUNK and padded - tokens - length > PADDING * padded:
                    return self._counted(chunk, width, tokens)
                self._unshelve(work)
                chunk.append(work)
                tokens += length
        return self._counted(chunk, width, tokens)

    def _counted(self, chunk: list[Work], width: int, tokens: int) -> list[Work]:
        self.chunks, self.tokens, self.padded = self.chunks + 1, self.tokens + tokens, self.padded + len(chunk) * width
        return chunk

    def _delivered(self, chunk: list[Work], future: asyncio.Future) -> None:
        self.running -= 1
        error = None if future.cancelled() else future.exception()
        if future.cancelled():
            error = Problem(503, "the server is shutting down", "shutting_down")
        if error is not None and out_of_memory(error):
            self._free_memory()
            if len(chunk) > 1:
                self._again(chunk)
                self._pump()
                return
            error = Problem(503, "this text does not fit in the device's memory", "out_of_memory")
        for row, work in enumerate(chunk):
            self.known.pop(work.item, None)
            for call, position in work.readers:
                if error is None:
                    self._give(call, position, future.result()[row])
                elif not call.future.done():
                    call.future.set_exception(error)
                    self._leave(call)
        self.done += len(chunk)
        self._pump()

    def _again(self, chunk: list[Work]) -> None:
        """At most half of what did not fit from now on, and the chunk back to its shelves."""
        padded = len(chunk) * max(work.length for work in chunk)
        if self.chunk_tokens > padded // 2:
            self.chunk_tokens, self.halved = max(padded // 2, 1), self.halved + 1
        for work in chunk:
            if not work.readers:
                del self.known[work.item]
                continue
            self._shelve(work)
            for call, _ in work.readers:
                if work not in call.works:
                    call.works.append(work)
                if call not in self.calls:
                    self.calls.append(call)

    @staticmethod
    def _free_memory() -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @staticmethod
    def _give(call: Call, position: int, row) -> None:
        call.rows[position] = row
        call.missing -= 1
        if not call.missing and not call.future.done():
            call.future.set_result(None)
