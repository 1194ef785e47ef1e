"""Models that serve: tokenising in a thread of each model, forwards in the device's, a Batcher between them."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from koir.encoder import Encoder
from koir.passages import passages
from koir.reranker import Reranker
from koir.serving.batching import Batcher
from koir.serving.problems import invalid
from koir.tokens import GPU_CHUNK, pad, shortened, tokenise_pairs

BLOCK = 64  # texts tokenised before another request gets its turn
TOKEN_CHARACTERS = 64  # no text worth embedding has more for each of its tokens
CPU_CHUNK = 2048  # padded tokens of a forward, unless told
Cut = list[set[int]]  # positions of the texts that were cut; of pairs: of the queries, and of the documents


@dataclass(frozen=True)
class Limits:
    """How long texts may be, in tokens. total: of a sequence. query, document: of each by itself. cut: else refuse."""

    total: int | None = None
    query: int | None = None
    document: int | None = None
    cut: bool = True
    side: str = "right"


@dataclass
class Answer:
    """rows: a logit [n] or a vector [n, D] each. tokens: of all sequences.

    truncated: positions whose text was cut, of pairs the document. cut_queries: how many different queries were.
    """

    rows: np.ndarray
    tokens: int
    truncated: list[int]
    cut_queries: int

    @property
    def cut(self) -> int:
        """How many texts were cut."""
        return len(self.truncated) + self.cut_queries


def _both(first: Cut, second: Cut) -> Cut:
    return [one | other for one, other in zip(first, second, strict=True)]


class Served:
    """A model with a name, its queue, and the thread that tokenises for it (fast tokenizers are not thread-safe).

    It serves once it is settled, which like its forwards is work for the device's thread.
    """

    kind = ""

    def __init__(self, name: str, model: nn.Module, bf16: bool, chunk_tokens: int | None, max_queue: int):
        self.name, self.model, self.bf16, self.created = name, model.eval(), bf16, int(time.time())
        self.device = next(model.parameters()).device
        chunk = chunk_tokens or (CPU_CHUNK if self.device.type == "cpu" else GPU_CHUNK)
        self.batcher = Batcher(self._forward, chunk, max_queue)
        self.words = ThreadPoolExecutor(1, "tokenise")

    @property
    def max_seq_length(self) -> int:
        """Tokens of the longest sequence it takes."""
        return self.model.max_seq_length

    def close(self) -> None:
        """Leave its queue and end its thread."""
        self.batcher.close()
        self.words.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, texts: Sequence[Hashable], code: Callable[[list], tuple[list, Cut]], limits: Limits):
        """Tokenise in blocks off the loop, each queued as soon as it is ready; equal texts are computed once.

        code: distinct texts -> their coded sequences, and what of them was cut. Returns an Answer.
        """
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        order, waiting, lengths, cut, queries = list(distinct), [], [], set(), set()
        loop = asyncio.get_running_loop()
        with self.batcher.admitted(len(texts)):
            try:
                for start in range(0, len(order), BLOCK):
                    items, beyond = await loop.run_in_executor(self.words, code, order[start : start + BLOCK])
                    cut |= {start + position for position in beyond[-1]}
                    queries |= {order[start + position][0] for position in beyond[0] if len(beyond) == 2}
                    if (cut or queries) and not limits.cut:
                        param = f"texts.{texts.index(order[min(cut)])}" if cut else "query"  # as TEI names them
                        raise invalid(param, "more tokens than fit", "a shorter one, or truncation")
                    lengths += [len(ids) for ids, _ in items]
                    waiting.append(asyncio.ensure_future(self.batcher.run(items, lengths[start:])))
                rows = [row for block in await asyncio.gather(*waiting) for row in block]
            finally:
                if unfinished := [block for block in waiting if not block.done()]:
                    for block in unfinished:
                        block.cancel()
                    await asyncio.gather(*unfinished, return_exceptions=True)
        numbers = [distinct[text] for text in texts]
        truncated = [position for position, number in enumerate(numbers) if number in cut]
        return Answer(np.stack(rows)[numbers], sum(lengths[number] for number in numbers), truncated, len(queries))

    def _forward(self, items: list[tuple]) -> np.ndarray:
        """Coded sequences (ids, types or None) -> the model's float32 rows; in the device's thread."""
        chunk = pad([ids for ids, _ in items], self.model.tokenizer.pad_token_id)  # [n, T]
        if items[0][1] is not None:
            chunk["token_type_ids"] = pad([types for _, types in items], 0)["input_ids"]  # [n, T]
        chunk = {name: tensor.to(self.device) for name, tensor in chunk.items()}
        with torch.inference_mode():
            return self.model.infer(chunk, self.bf16).cpu().numpy()

    def settle(self) -> None:
        """Lay the weights out for serving; nothing else works with the model afterwards."""
        self.model.keep_inference_alone(self.bf16)

    def _length(self, limits: Limits) -> int:
        return min(self.max_seq_length, limits.total or self.max_seq_length)

    def _code(self, *texts: Sequence[str], limits: Limits, types: bool) -> tuple[list[tuple], Cut]:
        """Texts, or two lists of them as pairs, to (ids, types), and which texts were cut.

        types: whether the model reads token types; else None stands for them.
        """
        columns, beyond = self._within_reach(texts, limits)
        with self._side(limits.side):
            if len(columns) == 2:
                coded = tokenise_pairs(self.model.tokenizer, *columns, self._length(limits))
            else:
                coded = self.model.tokenizer(*columns, truncation=True, max_length=self._length(limits))
        second = coded.get("token_type_ids") if types else None
        items = [
            (tuple(ids), tuple(second[i]) if second is not None else None) for i, ids in enumerate(coded["input_ids"])
        ]
        return items, _both(beyond, self._in_part(columns, coded.encodings or []))

    def _in_part(self, columns: Sequence[Sequence[str]], encodings: Sequence) -> Cut:
        """Which texts the encodings hold in part. Of a pair the document, where its query is whole."""
        over = {i for i, encoding in enumerate(encodings) if encoding.overflowing}
        if len(columns) == 1:
            return [over]
        queries = self._longer(columns[0], over, encodings, 0)
        return [queries, (over - queries) | self._longer(columns[1], queries, encodings, 1)]

    def _longer(self, texts: Sequence[str], which: set[int], encodings: Sequence, side: int) -> set[int]:
        """Those of `which` whose text has more tokens by itself than its side of the pair."""
        count = {
            text: len(self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in {texts[i] for i in which}
        }
        return {i for i in which if count[texts[i]] > encodings[i].sequence_ids.count(side)}

    def _within_reach(self, columns: Sequence[Sequence[str]], limits: Limits) -> tuple[list[list[str]], Cut]:
        """Texts without what no token budget reaches, which would only cost time, and which of them had such."""
        reach = TOKEN_CHARACTERS * self.max_seq_length
        part = slice(-reach, None) if limits.side == "left" else slice(reach)
        beyond = [{i for i, text in enumerate(texts) if len(text) > reach} for texts in columns]
        return [[text[part] for text in texts] for texts in columns], beyond

    @contextlib.contextmanager
    def _side(self, side: str) -> Iterator[None]:
        before = self.model.tokenizer.truncation_side
        self.model.tokenizer.truncation_side = side
        try:
            yield
        finally:
            self.model.tokenizer.truncation_side = before

    def _shortened(self, texts: Sequence[str], tokens: int | None, limits: Limits) -> tuple[list[str], set[int]]:
        """Each text cut to its first (or last) so many tokens of its own, and which were."""
        if not tokens or tokens >= self._length(limits):
            return list(texts), set()
        coded = self.model.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        short, cut = list(texts), set()
        for i, offsets in enumerate(coded["offset_mapping"]):
            if len(offsets) > tokens:
                cut.add(i)
                short[i] = shortened(texts[i], offsets, tokens, limits.side == "left")
        return short, cut


class ServedReranker(Served):
    """Answers with raw logits of (query, document) pairs."""

    kind = "reranker"
    model: Reranker

    async def score(self, pairs: Sequence[tuple[str, str]], limits: Limits) -> Answer:
        """(query, document) pairs to float32 logits [n]."""

        def code(part: list) -> tuple[list[tuple], Cut]:
            (queries, documents), beyond = self._within_reach(list(zip(*part, strict=True)), limits)
            queries, cut_queries = self._shortened(queries, limits.query, limits)
            documents, cut_documents = self._shortened(documents, limits.document, limits)
            items, cut = self._code(queries, documents, limits=limits, types=self.model.reads_types)
            return items, _both(_both(beyond, [cut_queries, cut_documents]), cut)

        return await self._answer(pairs, code, limits)

    async def passages(self, texts: Sequence[str], tokens: int) -> list[list[str]]:
        """Each text in passages of at most so many tokens."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.words, passages, self.model.tokenizer, texts, tokens)


class ServedEncoder(Served):
    """Answers with float32 unit vectors."""

    kind = "encoder"
    model: Encoder

    async def embed(self, texts: Sequence[str] | Sequence[Sequence[int]], prompt: str | None, limits: Limits) -> Answer:
        """Texts, or token ids as they are, to vectors [n, D]. prompt: "query", "document", or None: the bare text."""
        prefix = self.model.prompts[prompt] if prompt else ""

        def code(part: list) -> tuple[list[tuple], Cut]:
            if isinstance(part[0], str):
                return self._code([prefix + text for text in part], limits=limits, types=False)
            longest = self._length(limits)
            cut = {i for i, ids in enumerate(part) if len(ids) > longest}
            kept = slice(-longest, None) if limits.side == "left" else slice(longest)
            return [(ids[kept], None) for ids in part], [cut]

        texts = texts if isinstance(texts[0], str) else [tuple(ids) for ids in texts]
        return await self._answer(texts, code, limits)
