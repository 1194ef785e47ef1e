"""Both parts of a hybrid in Milvus: dense vectors, and our own BM25 weights as sparse ones; a file or a cluster.

Milvus' own BM25 is not used: its word splitting knows no Korean, and its document frequencies are a segment's, so
that a file and a cluster would rank differently. Here documents carry our weights and a query the counts of its
words, so the inner product is our BM25 score. Texts and vocabulary are stored too: an index needs but its URI.
"""

import contextlib
import functools
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pymilvus import DataType, MilvusClient, MilvusException

from koir.encoder import Encoder
from koir.errors import RunError
from koir.retrieval.bm25 import BM25, terms
from koir.retrieval.dense import Dense, valid
from koir.retrieval.ranking import as_run, best

for library in ("pymilvus", "milvus_lite"):  # they log tracebacks of what they also raise
    logging.getLogger(library).setLevel(logging.CRITICAL)
COMPLETE = " complete with texts"  # no word begins with a space; its row is written last
ROWS = 500  # rows an insert
QUERIES = 64  # queries a search
TEXT_BYTES = 65_535  # of a document's text that Milvus takes; only --passage_tokens reads further
TEXTS = 100  # texts fetched at once
MOST = 16_384  # candidates that Milvus gives at most
NO_WORD = 0  # the sparse dimension that documents without words have, and no query


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Raises RunError where Milvus does not answer, or refuses."""
    try:
        yield
    except MilvusException as error:
        raise RunError("Milvus", f"no answer ({str(error)[:120]})", "a Milvus that is up") from None


@functools.cache
def connect(uri: str) -> MilvusClient:
    """A client for a milvus-lite file (created where absent) or a cluster's URI; MILVUS_TOKEN is its key.

    Raises RunError where it cannot be reached.
    """
    if "://" not in uri:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
    try:
        return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""))
    except (MilvusException, ConnectionError, OSError) as error:
        raise RunError(
            f"--index_uri {uri}",
            f"no Milvus there ({str(error)[:120]})",
            "a reachable URI, or a file that no other process (a server, say) holds open",
        ) from None


@_reached()
def is_complete(client: MilvusClient, name: str) -> bool:
    """Whether an index of this name was written to its end; if so, it is ready to be searched.

    Like all that follows, it raises RunError where Milvus does not answer.
    """
    if not client.has_collection(f"{name}_words"):
        return False
    for collection in (name, f"{name}_words"):
        client.load_collection(collection)
    return bool(client.get(f"{name}_words", [COMPLETE]))


@_reached()
def write(client: MilvusClient, name: str, lexical: BM25, dense: Dense, corpus: dict[str, str], facts: dict) -> None:
    """Insert both parts and the texts under a name; what an interrupted attempt left is dropped.

    corpus: id -> text. facts: what `described` gives.
    """
    for collection in (name, f"{name}_words"):
        if client.has_collection(collection):
            client.drop_collection(collection)
    _create_documents(client, name, dense.vectors.shape[1])
    weights = _rows_of(lexical)
    for start in range(0, len(dense.ids), ROWS):
        rows = [
            {"number": n, "id": dense.ids[n], "text": _within(corpus[dense.ids[n]]), "dense": dense.vectors[n].tolist()}
            | {"sparse": weights(n)}
            for n in range(start, min(start + ROWS, len(dense.ids)))
        ]
        client.insert(name, rows)
    client.flush(name)
    words = f"{name}_words"
    _create_words(client, words)
    nothing = {"facts": "", "nothing": [0.0, 0.0]}
    entries = [{"word": word, "number": number} | nothing for word, number in lexical.vocabulary.items()]
    for start in range(0, len(entries), ROWS):
        client.insert(words, entries[start : start + ROWS])
    describe(client, name, facts)


@_reached()
def describe(client: MilvusClient, name: str, facts: dict) -> None:
    """Write what `described` gives, which also says that an index is whole; what was said before is replaced."""
    said = json.dumps(facts, ensure_ascii=False)
    client.upsert(f"{name}_words", [{"word": COMPLETE, "number": -1, "facts": said, "nothing": [0.0, 0.0]}])
    client.flush(f"{name}_words")


def _create_documents(client: MilvusClient, name: str, dimensions: int) -> None:
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("number", DataType.INT64, is_primary=True)
    schema.add_field("id", DataType.VARCHAR, max_length=65_535)
    schema.add_field("text", DataType.VARCHAR, max_length=TEXT_BYTES)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dimensions)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    indexes = client.prepare_index_params()
    indexes.add_index("dense", index_type="FLAT", metric_type="IP")  # exact
    indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    indexes.add_index("id", index_type="INVERTED")
    client.create_collection(name, schema=schema, index_params=indexes, consistency_level="Strong")


def _within(text: str) -> str:
    """What of a text fits into its field."""
    return text.encode("utf-8", "ignore")[:TEXT_BYTES].decode("utf-8", "ignore")


def _create_words(client: MilvusClient, name: str) -> None:
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("word", DataType.VARCHAR, max_length=65_535, is_primary=True)
    schema.add_field("number", DataType.INT64)
    schema.add_field("facts", DataType.VARCHAR, max_length=65_535)
    schema.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # a collection must have a vector
    indexes = client.prepare_index_params()
    indexes.add_index("nothing", index_type="FLAT", metric_type="L2")
    client.create_collection(name, schema=schema, index_params=indexes, consistency_level="Strong")


def _rows_of(lexical: BM25):
    """A function from a document's position to its sparse vector: word's column + 1 -> weight."""
    if not lexical.vocabulary:
        return lambda position: {NO_WORD: 1.0}
    scores = lexical.index.scores
    columns = np.repeat(np.arange(len(scores["indptr"]) - 1), np.diff(scores["indptr"]))  # [nonzero]
    order = np.argsort(scores["indices"], kind="stable")  # by document
    starts = np.searchsorted(scores["indices"][order], np.arange(len(lexical.ids) + 1))

    def row(position: int) -> dict[int, float]:
        there = order[starts[position] : starts[position + 1]]
        weights = scores["data"][there].tolist()
        return dict(zip((columns[there] + 1).tolist(), weights, strict=True)) or {NO_WORD: 1.0}

    return row


def _all(client: MilvusClient, name: str, fields: list[str]) -> Iterator[dict]:
    with _reached():
        rows = client.query_iterator(name, filter="number >= -1", output_fields=fields)
        while batch := rows.next():
            yield from batch
        rows.close()


@_reached()
def described(uri: str, spec: str | None = None) -> dict:
    """The facts of the one index at a URI, of several the one of a first stage. Raises RunError where it is not one."""
    if "://" not in uri and not Path(uri).exists():
        raise RunError(f"--index_uri {uri}", "no such file", "one that scripts/build_index.py wrote")
    client = connect(uri)
    names = [name for name in client.list_collections() if f"{name}_words" in client.list_collections()]
    complete = [name for name in names if is_complete(client, name)]
    rows = [row for name in complete for row in client.get(f"{name}_words", [COMPLETE], output_fields=["facts"])]
    facts = [json.loads(row["facts"]) for row in rows]
    of_stage = [said for said in facts if said["first_stage"] == spec]
    if len(facts) > 1 and of_stage:
        facts = of_stage
    if len(facts) != 1:
        found = f"{len(facts)} complete indexes{f' of {spec}' if of_stage else ''}"
        raise RunError(f"--index_uri {uri}", found, "one, by scripts/build_index.py with a URI of its own")
    return facts[0]


class _Part:
    """One field of a collection as a first stage."""

    def __init__(self, client: MilvusClient, name: str, field: str):
        self.client, self.name, self.field = client, name, field

    def found(self, vectors: list, depth: int) -> list[dict[str, float]]:
        """For each query vector its `depth` best documents: id -> inner product; ties by id where they were fetched."""
        runs = []
        for start in range(0, len(vectors), QUERIES):
            with _reached():
                hits = self.client.search(
                    self.name,
                    vectors[start : start + QUERIES],
                    limit=min(depth + 8, MOST),
                    anns_field=self.field,
                    output_fields=["id"],
                    search_params={"metric_type": "IP"},
                )
            for of_query in hits:
                rows = sorted((hit["number"], hit["entity"]["id"], hit["distance"]) for hit in of_query)
                scores = np.array([score for *_, score in rows], dtype=np.float32)
                order = best(scores, depth)
                runs.append(as_run([document for _, document, _ in rows], order, scores[order]))
        return runs


class SparseMilvus(_Part):
    """BM25 by sparse inner product."""

    def __init__(self, client: MilvusClient, name: str):
        super().__init__(client, name, "sparse")
        rows = _all(client, f"{name}_words", ["word", "number"])
        self.vocabulary = {row["word"]: row["number"] for row in rows if row["word"] != COMPLETE}

    def search(self, queries: Sequence[str], depth: int) -> list[dict[str, float]]:
        """For each query its `depth` best documents: id -> BM25 score."""
        counts = [Counter(self.vocabulary[t] + 1 for t in found if t in self.vocabulary) for found in terms(queries)]
        asked = [{word: float(count) for word, count in of_query.items()} for of_query in counts if of_query]
        runs = iter(self.found(asked, depth))
        return [next(runs) if of_query else {} for of_query in counts]


class DenseMilvus(_Part):
    """Cosines of an encoder's vectors."""

    def __init__(self, client: MilvusClient, name: str, encoder: Encoder, progress: bool):
        super().__init__(client, name, "dense")
        self.encoder, self.progress = encoder, progress

    @property
    def ids(self) -> list[str]:
        """All document ids, sorted; fetched when asked."""
        rows = _all(self.client, self.name, ["number", "id"])
        return [row["id"] for row in sorted(rows, key=lambda row: row["number"])]

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        """Documents' texts by id, of very long ones the beginning."""
        found = {}
        for start in range(0, len(ids), TEXTS):
            named = json.dumps(list(ids[start : start + TEXTS]), ensure_ascii=False)
            with _reached():
                rows = self.client.query(self.name, filter=f"id in {named}", output_fields=["id", "text"])
            found |= {row["id"]: row["text"] for row in rows}
        return found

    def search(self, queries: Sequence[str], depth: int, vectors: np.ndarray | None = None) -> list[dict[str, float]]:
        """For each query its `depth` nearest documents: id -> cosine. vectors: [Q, D], of queries embedded already."""
        if vectors is None:
            vectors = self.encoder.encode(valid(queries), "query", progress="queries" if self.progress else None)
        return self.found(list(vectors), depth)
