"""The whole pipeline behind one call: first stage, reranker over its best candidates, final ranking."""

import asyncio
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from koir.errors import RunError
from koir.evaluation.pipeline import Pipeline
from koir.evaluation.reranking import final_run
from koir.passages import strongest
from koir.retrieval.ranking import ranked
from koir.retrieval.score_maps import SCORE_MAPS
from koir.serving.batching import queue_full
from koir.serving.models import Answer, Limits, ServedEncoder, ServedReranker
from koir.serving.problems import Problem

log = logging.getLogger("koir.serving")
MOST_CANDIDATES = 1000
LONGEST_QUERY = 10_000  # characters; morphemes of a million take twenty seconds, in which all other searches wait


class Documents:
    """The texts of an index's documents.jsonl, found by id and read from disk when asked for.

    The file stays open, so that what is built in its place later does not mix with an index that is in memory.
    """

    def __init__(self, file: Path, count: int | None = None):
        """count: how many there are to be. Raises RunError for a file that is cut short."""
        if not file.is_file():
            raise RunError(str(file), "no such file", "what scripts/build_index.py or evaluate.py wrote there")
        self.lines, self.places = file.open("rb"), {}
        place, whole = 0, "a whole index: scripts/build_index.py writes it again"
        try:
            for line in self.lines:
                row = json.loads(line)
                document, _ = row["_id"], row["text"]
                self.places[document] = place, len(line)
                place += len(line)
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{file}, line {len(self.places) + 1}", "a line that is cut short", whole) from None
        if count not in (None, len(self.places)):
            raise RunError(str(file), f"{len(self.places):,} of {count:,} documents", whole)

    def __call__(self, ids: Sequence[str]) -> dict[str, str]:
        """id -> title and text of documents, as they were indexed."""
        number = self.lines.fileno()
        read = {document: os.pread(number, *reversed(self.places[document])) for document in ids}
        return {document: json.loads(line)["text"] for document, line in read.items()}


@dataclass
class Hit:
    """One document of an answer. score: as the pipeline shows it. first_stage_score: as the first stage gave it."""

    id: str
    text: str
    score: float
    first_stage_score: float


@dataclass
class Found:
    """A search's answer. hits: best first. milliseconds: of each stage. texts, tokens: that went through models.

    cut_query: whether only a part of the query was read. cut: ids of candidates the reranker read in part.
    """

    hits: list[Hit]
    milliseconds: dict[str, float]
    texts: int
    tokens: int
    cut_query: bool
    cut: list[str]


class ServedPipeline:
    """An index, the texts behind it, its encoder (or None), and the reranker (or None) that orders its candidates.

    texts_of: ids -> id -> text. max_queue: searches in the first stage beyond which new ones are turned away.
    """

    kind = "pipeline"

    def __init__(
        self,
        name: str,
        index,
        texts_of: Callable[[Sequence[str]], dict],
        pipeline: Pipeline,
        encoder: ServedEncoder | None,
        reranker: ServedReranker | None,
        max_queue: int = 32768,
    ):
        self.name, self.index, self.texts_of, self.pipeline = name, index, texts_of, pipeline
        self.encoder, self.reranker, self.max_queue = encoder, reranker, max_queue
        self.created, self.max_seq_length = int(time.time()), None
        self.first = ThreadPoolExecutor(1, "first-stage")
        self.waiting, self.done, self.seconds = 0, 0, 0.0

    def close(self) -> None:
        """End its thread."""
        self.first.shutdown(wait=False, cancel_futures=True)

    async def search(self, query: str, top_n: int, depth: int | None, rerank: bool) -> Found:
        """The `top_n` best documents."""
        depth, started = min(max(depth or self.pipeline.depth, top_n), MOST_CANDIDATES), time.perf_counter()
        query, beyond = query[:LONGEST_QUERY], len(query) > LONGEST_QUERY
        candidates, texts, embedded = await self._first_stage(query, depth)
        milliseconds = {"first_stage": 1000 * (time.perf_counter() - started)}
        texts_read, tokens, cut_query = (1, embedded.tokens, bool(embedded.truncated)) if embedded else (0, 0, False)
        cut_query = cut_query or beyond
        if self.reranker is None or not rerank or self.pipeline.interpolate == 0 or not candidates:
            hits = [Hit(d, texts[d], candidates[d], candidates[d]) for d in ranked(candidates)[:top_n]]
            return Found(hits, milliseconds, texts_read, tokens, cut_query, [])
        started, ids, p = time.perf_counter(), list(candidates), self.pipeline
        parts = [[texts[d]] for d in ids]
        if p.passage_tokens:
            parts = await self.reranker.passages([texts[d] for d in ids], p.passage_tokens)
        owners = [d for d, of_one in zip(ids, parts, strict=True) for _ in of_one]
        answer = await self.reranker.score([(query, part) for of_one in parts for part in of_one], Limits())
        milliseconds["reranker"] = 1000 * (time.perf_counter() - started)
        rows = strongest(answer.rows, parts)  # [n]
        logits = dict(zip(ids, rows.tolist(), strict=True))
        final = final_run(candidates, logits, depth, p.interpolate, p.normalise or "minmax")
        shown = final
        if p.interpolate is None:  # a mixture is shown as it is: its parts are on a scale of their own
            shown = dict(zip(ids, SCORE_MAPS[p.score_map or "sigmoid"](rows).tolist(), strict=True))
        hits = [Hit(d, texts[d], shown[d], candidates[d]) for d in ranked(final)[:top_n]]
        cut = list(dict.fromkeys(owners[position] for position in answer.truncated))
        cut_query = cut_query or answer.cut_queries > 0
        return Found(hits, milliseconds, texts_read + len(owners), tokens + answer.tokens, cut_query, cut)

    async def _first_stage(self, query: str, depth: int) -> tuple[dict[str, float], dict[str, str], Answer | None]:
        """The candidates, best first, their texts, and what the encoder said of the query. Raises Problem 429, 503."""
        if self.waiting >= self.max_queue:
            seconds = self.waiting * self.seconds / max(self.done, 1)
            raise queue_full(self.waiting, self.max_queue, seconds, "searches")
        self.waiting += 1
        try:
            embedded = await self.encoder.embed([query], "query", Limits()) if self.encoder else None
            vectors = [embedded.rows] if embedded else []  # of [1, D]; BM25 takes none
            search = asyncio.get_running_loop().run_in_executor(self.first, self._candidates, query, depth, *vectors)
            return *await search, embedded
        except RunError as error:  # a Milvus that went away
            log.error("%s", error)
            raise Problem(503, "the index does not answer; try again later", "index_unavailable") from None
        finally:
            self.waiting -= 1

    def _candidates(self, query: str, depth: int, *vectors: np.ndarray) -> tuple[dict[str, float], dict[str, str]]:
        started = time.perf_counter()
        (found,) = self.index.search([query], depth, *vectors)
        found = dict(itertools.islice(found.items(), depth))
        texts = self.texts_of(list(found))
        self.done, self.seconds = self.done + 1, self.seconds + time.perf_counter() - started
        return found, texts
