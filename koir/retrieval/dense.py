"""Exact dense search: every query against every document, by FAISS, over embeddings that may lie on disk."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import nn

from koir.encoder import Encoder
from koir.gather import meet, rank, world_size
from koir.manifest import written_aside
from koir.retrieval.ranking import as_run, best

SHARD = 2048  # texts embedded between two files: what a kill can cost
ROUNDING = 1e-6  # BLAS rounds a product by where it stands, so those of equal vectors differ by less than this
CUTTING = ("added_tokens", "normalizer", "pre_tokenizer", "model", "post_processor")  # of a tokenizer's JSON
NO_MATTER = ("_name_or_path", "architectures", "auto_map", "dtype", "sentence_transformers", "transformers_version",
             "use_cache")  # of a configuration: where it lies, who wrote it, what others read  # fmt: skip


class Dense:
    """All documents as unit vectors, compared by inner product.

    ids: document ids, sorted. vectors: [N, D] float32, in memory or memory-mapped, in the order of ids.
    """

    def __init__(
        self,
        encoder: Encoder,
        ids: list[str],
        vectors: np.ndarray,
        name: str,
        progress: bool = False,
        bf16: bool = False,
    ):
        self.encoder, self.ids, self.vectors, self.name, self.progress = encoder, ids, vectors, name, progress
        self.bf16 = bf16

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        corpus: dict[str, str],
        name: str,
        progress: bool = False,
        parts: Path | None = None,
        bf16: bool = False,
        share: Callable | None = None,
    ) -> "Dense":
        """Embed a corpus. parts: a folder for finished shards, from which an interrupted build goes on. Without it:
        bf16, as for `Encoder.encode`, and share(texts, embed), which has embed(part) done by several processes.

        With `parts` and several processes (torchrun), they share the shards; all return once all are done.
        """
        ids = sorted(corpus)
        corpus = dict(zip(ids, valid([corpus[document] for document in ids]), strict=True))
        texts = list(dict.fromkeys(corpus.values()))  # equal texts get one vector, so they tie
        row = {text: number for number, text in enumerate(texts)}
        shown = "documents" if progress else None
        if parts is None:
            embed = functools.partial(encoder.encode, kind="document", progress=shown, bf16=bf16)
            vectors = share(texts, embed) if share else embed(texts)
        else:
            vectors = _shards(encoder, texts, parts, shown)
        return cls(encoder, ids, vectors[[row[corpus[document]] for document in ids]], name, progress, bf16)

    def save(self, folder: Path) -> None:
        """Write ids and vectors into a folder that `load` maps back into memory."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.ids, ensure_ascii=False)
        (folder / "ids.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        np.save(folder / "vectors.npy", self.vectors)

    @classmethod
    def load(cls, folder: Path, encoder: Encoder, name: str, progress: bool = False) -> "Dense":
        """The saved index, its vectors memory-mapped; nothing is embedded again.

        Raises ValueError, and what readers raise, for a damaged one.
        """
        ids = json.loads((folder / "ids.json").read_text(encoding="utf-8", errors="surrogatepass"))
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        if vectors.shape != (len(ids), encoder.dimensions):
            raise ValueError(f"vectors of shape {vectors.shape} for {len(ids)} ids")
        return cls(encoder, ids, vectors, name, progress)

    def search(self, queries: Sequence[str], depth: int, vectors: np.ndarray | None = None) -> list[dict[str, float]]:
        """For each query its `depth` nearest documents: id -> cosine. vectors: [Q, D], of queries embedded already."""
        if vectors is None:
            shown = "queries" if self.progress else None
            vectors = self.encoder.encode(valid(queries), "query", progress=shown, bf16=self.bf16)
        found, waiting, wanted = {}, np.arange(len(queries)), depth
        while len(waiting):  # a tie that reaches beyond what was fetched is fetched whole
            wanted = min(wanted + 8, len(self.ids))
            scores, rows = _nearest(vectors[waiting], self.vectors, wanted)  # [q, wanted] each
            undecided = []
            for query, values, positions in zip(waiting, scores, rows, strict=True):
                if wanted < len(self.ids) and values[depth - 1] - values[-1] < ROUNDING:
                    undecided.append(query)
                    continue
                gaps = -np.diff(values, prepend=np.inf, append=-np.inf)  # [wanted + 1]
                near = np.minimum(gaps[:-1], gaps[1:]) < ROUNDING  # [wanted]
                values[near] = np.einsum("nd,d->n", self.vectors[positions[near]], vectors[query])
                by_id = np.argsort(positions)
                order = by_id[best(values[by_id], depth)]
                found[query] = as_run(self.ids, positions[order], values[order])
            waiting, wanted = np.array(undecided, dtype=int), 2 * wanted
        return [found[query] for query in range(len(queries))]


def valid(texts: Sequence[str]) -> list[str]:
    """Texts without halves of surrogate pairs, which no tokenizer takes."""
    return [text.encode("utf-8", "ignore").decode() for text in texts]


def _nearest(queries: np.ndarray, documents: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    if not depth:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    return faiss.knn(queries, documents, depth, metric=faiss.METRIC_INNER_PRODUCT)  # flat: every pair is compared


def _shards(encoder: Encoder, texts: list[str], parts: Path, progress: str | None) -> np.ndarray:
    """[len(texts), D]: what `parts` already holds is read, the rest embedded and written there."""
    parts.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(texts), SHARD)
    files = [parts / f"{start:09}.npy" for start in starts]
    for number, (start, file) in enumerate(zip(starts, files, strict=True)):
        if number % world_size() == rank() and not file.is_file():
            label = f"{progress} {number + 1} of {len(files)}" if progress and len(files) > 1 else progress
            vectors = encoder.encode(texts[start : start + SHARD], "document", progress=label)
            with written_aside(file) as aside, aside.open("wb") as out:
                np.save(out, vectors)
    meet()
    empty = np.empty((0, encoder.dimensions), dtype=np.float32)
    return np.concatenate([empty, *[np.load(file) for file in files]])


def model_fingerprint(model: nn.Module, settings: object) -> str:
    """sha256 over tensors, configuration, tokenizer and settings of an encoder or reranker: all its scores rest on."""
    content = json.dumps([_configuration(model.transformer), _cutting(model.tokenizer)], sort_keys=True, default=str)
    found = hashlib.sha256(f"{settings!r} {content}".encode("utf-8", "surrogatepass"))
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _configuration(transformer: nn.Module) -> dict:
    """What a transformer computes besides its weights; dropout is training's alone."""
    settings = transformer.config.to_dict().items()
    return {name: value for name, value in settings if name not in NO_MATTER and "drop" not in name}


def _cutting(tokenizer) -> dict:
    """How a tokenizer cuts texts; the truncation and padding of its latest call are left out."""
    if words := getattr(tokenizer, "backend_tokenizer", None):
        content = json.loads(words.to_str())
        return {part: content.get(part) for part in CUTTING} | {"truncation_side": tokenizer.truncation_side}
    return tokenizer.get_vocab()


def encoder_fingerprint(encoder: Encoder) -> str:
    """sha256 over weights, configuration, tokenizer, pooling, maximum length and prompts."""
    return model_fingerprint(encoder, [encoder.pooling, encoder.max_seq_length, sorted(encoder.prompts.items())])
