"""The whole pipeline behind one call: first stage, reranker over its best candidates, final ranking."""

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from koir.errors import RunError
from koir.evaluation.pipeline import Pipeline
from koir.evaluation.reranking import final_run
from koir.retrieval.ranking import ranked
from koir.retrieval.score_maps import SCORE_MAPS
from koir.serving.models import Limits, ServedReranker
from koir.serving.problems import Problem

log = logging.getLogger("koir.serving")
MOST_CANDIDATES = 1000


class Documents:
    """The texts of an index's documents.jsonl, found by id and read from disk when asked for."""

    def __init__(self, file: Path):
        if not file.is_file():
            raise RunError(str(file), "no such file", "an index that scripts/build_index.py wrote")
        self.file, self.places = file, {}
        with file.open("rb") as lines:
            place = 0
            for line in lines:
                self.places[json.loads(line)["_id"]] = place
                place += len(line)

    def __call__(self, ids: Sequence[str]) -> dict[str, str]:
        """id -> title and text of documents, as they were indexed."""
        found = {}
        with self.file.open("rb") as lines:
            for document in ids:
                lines.seek(self.places[document])
                found[document] = json.loads(lines.readline())["text"]
        return found


@dataclass
class Hit:
    """One document of an answer. score: as the pipeline shows it. first_stage_score: as the first stage gave it."""

    id: str
    text: str
    score: float
    first_stage_score: float


class ServedPipeline:
    """An index, the texts behind it, and the reranker (or None) that orders its candidates.

    texts_of: ids -> id -> text.
    """

    kind = "pipeline"

    def __init__(
        self,
        name: str,
        index,
        texts_of: Callable[[Sequence[str]], dict],
        pipeline: Pipeline,
        reranker: ServedReranker | None,
    ):
        self.name, self.index, self.texts_of, self.pipeline, self.reranker = name, index, texts_of, pipeline, reranker
        self.created, self.max_seq_length = int(time.time()), None
        self.first = ThreadPoolExecutor(1, "first-stage")

    def close(self) -> None:
        """End its thread."""
        self.first.shutdown(wait=False, cancel_futures=True)

    async def search(self, query: str, top_n: int, depth: int | None, rerank: bool) -> tuple[list[Hit], dict, int]:
        """The `top_n` best documents, milliseconds of each stage, and the reranker's tokens."""
        depth = min(max(depth or self.pipeline.depth, top_n), MOST_CANDIDATES)
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        try:
            candidates, texts = await loop.run_in_executor(self.first, self._candidates, query, depth)
        except RunError as error:  # a Milvus that went away
            log.error("%s", error)
            raise Problem(503, "the index does not answer; try again later", "index_unavailable") from None
        milliseconds = {"first_stage": 1000 * (time.perf_counter() - started)}
        if self.reranker is None or not rerank or not candidates:
            order = ranked(candidates)[:top_n]
            return [Hit(d, texts[d], candidates[d], candidates[d]) for d in order], milliseconds, 0
        started, ids = time.perf_counter(), list(candidates)
        answer = await self.reranker.score([(query, texts[d]) for d in ids], Limits())
        milliseconds["reranker"] = 1000 * (time.perf_counter() - started)
        logits, p = dict(zip(ids, answer.rows.tolist(), strict=True)), self.pipeline
        final = final_run(candidates, logits, depth, p.interpolate, p.normalise or "minmax")
        shown = final
        if p.interpolate is None:  # a mixture is shown as it is: its parts are on a scale of their own
            shown = dict(zip(ids, SCORE_MAPS[p.score_map or "sigmoid"](answer.rows).tolist(), strict=True))
        order = ranked(final)[:top_n]
        return [Hit(d, texts[d], shown[d], candidates[d]) for d in order], milliseconds, answer.tokens

    def _candidates(self, query: str, depth: int) -> tuple[dict[str, float], dict[str, str]]:
        (found,) = self.index.search([query], depth)
        found = dict(itertools.islice(found.items(), depth))
        return found, self.texts_of(list(found))
