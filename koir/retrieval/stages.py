"""First stages by name: bm25, dense:PATH, hybrid:PATH, milvus:PATH; built once for a corpus, kept, opened again.

An index folder (--index_uri) holds one folder for each part, named by what it was made of, so that two checkpoints
or two corpora never meet: `bm25-<key>/`, `dense-<key>/`.

    stage = first_stage("hybrid:outputs/RUN", index_uri="indexes/law", fusion="weighted", weight=0.4)
    index = stage(corpus)                       # corpus: id -> text; built, or opened where it is already there
    (found,) = index.search(["연차는 며칠?"], 10)   # id -> score, best first
"""

import contextlib
import datetime
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError  # numpy's, of a header that it cannot read

import torch
from tqdm import tqdm

from koir.encoder import Encoder, load_encoder
from koir.errors import FlagError, RunError, nearest, without_passwords
from koir.gather import gather_sizes, meet, rank, world_size
from koir.manifest import cache_folder, write_json, written_aside
from koir.retrieval.bm25 import BM25, K1, LEAD_WORDS, PAIR_WEIGHT, B
from koir.retrieval.dense import Dense, encoder_fingerprint, valid
from koir.retrieval.hybrid import DENSE_SHARE, Hybrid
from koir.retrieval.morphemes import CONTENT_TAGS, PLAIN
from koir.tokens import some_of

KINDS = ("bm25", "dense", "hybrid", "milvus")
FUSIONS = ("weighted", "rrf")


def corpus_fingerprint(corpus: dict[str, str]) -> str:
    """sha256 over ids and texts, whatever their order."""
    found = hashlib.sha256()
    for document in sorted(corpus):
        found.update(json.dumps([document, corpus[document]]).encode())
    return found.hexdigest()


@dataclass
class FirstStage:
    """A first stage that is yet to meet a corpus; calling it with one gives the index.

    spec: as given. fingerprint: sha256 of everything but the corpus that its scores depend on.
    store: folder that holds the parts' folders. fusion, weight: of a hybrid (weight: the dense part's share where
    they are weighted, default DENSE_SHARE).
    uri: of a Milvus cluster or file; None: a file in the store.
    """

    spec: str
    store: Path
    encoder: Encoder | None = None
    fusion: str = "weighted"
    weight: float | None = None
    progress: bool = True
    uri: str | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self):
        dense = encoder_fingerprint(self.encoder) if self.encoder else ""
        self.kind = self.spec.partition(":")[0]
        if self.fuses and self.fusion == "weighted" and self.weight is None:
            self.weight = DENSE_SHARE
        versions = map(importlib.metadata.version, ("bm25s", "kiwipiepy", "kiwipiepy_model"))
        self._keys = {
            "bm25": digest("bm25", CONTENT_TAGS, str(PLAIN), K1, B, PAIR_WEIGHT, LEAD_WORDS, *versions),
            "dense": dense,
        }
        self.fingerprint = digest(self.kind, *[self._keys[part] for part in self.part_kinds])

    @property
    def fuses(self) -> bool:
        """Whether it is made of a lexical and a dense part."""
        return self.kind in ("hybrid", "milvus")

    @property
    def part_kinds(self) -> list[str]:
        """The kinds of index it is made of."""
        return ["bm25", "dense"] if self.fuses else [self.kind]

    def part_folder(self, part: str, corpus_key: str) -> Path:
        """Where a part's index over a corpus lies."""
        return self.store / f"{part}-{digest(self._keys[part], corpus_key)[:16]}"

    def __call__(self, corpus: dict[str, str]):
        """Build what is not yet there, and open it; of several processes the first has the index, the others None."""
        key = corpus_fingerprint(corpus)
        there = self.kind == "milvus" and rank() == 0 and self.is_complete(key)  # a Milvus file opens for one process
        there = any(number for (number,) in gather_sizes(int(there)))
        if not there:
            for part in self.part_kinds:
                folder = self.part_folder(part, key)
                missing = gather_sizes(int(not (folder / "complete.json").is_file()))  # all decide alike
                if any(number for (number,) in missing):
                    with _alone(folder):
                        if world_size() > 1 or not (folder / "complete.json").is_file():
                            self._build(part, folder, corpus, key)
        if self.kind == "milvus" and rank() == 0 and not there:
            parts = [self._load(part, self.part_folder(part, key)) for part in self.part_kinds]
            facts = self._facts(corpus, key)
            _milvus().write(_milvus().connect(self._milvus_uri(key)), self._collection(key), *parts, corpus, facts)
        return self.open(key) if rank() == 0 else None

    def describe_in_milvus(self, corpus: dict[str, str]) -> None:
        """Say how an index that is there is to be searched, which may have been made for another fusion."""
        key = corpus_fingerprint(corpus)
        _milvus().describe(_milvus().connect(self._milvus_uri(key)), self._collection(key), self._facts(corpus, key))

    def _facts(self, corpus: dict[str, str], key: str) -> dict:
        facts = {"first_stage": self.spec, "fusion": self.fusion, "weight": self.weight}
        return facts | {"documents": len(corpus), "corpus_fingerprint": key}

    def is_complete(self, corpus_key: str) -> bool:
        """Whether the index over a corpus is there, whole and made of these weights."""
        if self.kind == "milvus":
            uri = self._milvus_uri(corpus_key)
            there = "://" in uri or Path(uri).exists()
            return there and _milvus().is_complete(_milvus().connect(uri), self._collection(corpus_key))
        return all((self.part_folder(part, corpus_key) / "complete.json").is_file() for part in self.part_kinds)

    def open(self, corpus_key: str):
        """The index over a corpus that was built before, by the corpus's fingerprint."""
        if self.kind == "milvus":
            client, name = _milvus().connect(self._milvus_uri(corpus_key)), self._collection(corpus_key)
            parts = [
                _milvus().SparseMilvus(client, name),
                _milvus().DenseMilvus(client, name, self.encoder, self.progress),
            ]
        else:
            parts = [self._load(part, self.part_folder(part, corpus_key)) for part in self.part_kinds]
        return parts[0] if len(parts) == 1 else Hybrid(*parts, self.spec, self.fusion, self.weight)

    def _collection(self, corpus_key: str) -> str:
        return f"koir_{digest(self.fingerprint, corpus_key)[:16]}"

    def _milvus_uri(self, corpus_key: str) -> str:
        return self.uri or str(self.store / f"{self._collection(corpus_key)}.db")

    def _load(self, part: str, folder: Path) -> BM25 | Dense:
        try:
            documents = json.loads((folder / "complete.json").read_text(encoding="utf-8"))["documents"]
            more = [self.encoder, self.spec, self.progress] if part == "dense" else []
            index = (Dense if part == "dense" else BM25).load(folder, *more)
            if len(index.ids) != documents or set(map(type, index.ids)) - {str}:
                raise ValueError(f"{len(index.ids)} ids of {documents} documents")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, TokenError) as error:
            why = " ".join(str(error).split())[:120]
            raise RunError(str(folder), f"an index that is cut short ({why})", "it deleted, and built anew") from None
        return index

    def _say_what_is_cut(self, corpus: dict[str, str]) -> None:
        if not self.progress or rank():
            return
        texts, most = valid(some_of(list(corpus.values()))), self.encoder.max_seq_length
        if longer := self.encoder.too_long(texts, "document"):
            what = f"{longer:,} of {len(texts):,} looked at have more, of which their vectors say nothing"
            tqdm.write(f"note: {self.spec} reads {most:,} tokens of a document; {what}", sys.stderr)

    def _build(self, part: str, folder: Path, corpus: dict[str, str], key: str) -> None:
        """Build one part. With several processes all embed, the first writes, and none goes on before that."""
        shards = folder.with_name(f"{folder.name}.shards")
        if part == "dense":
            self._say_what_is_cut(corpus)
            index = Dense.build(self.encoder, corpus, self.spec, self.progress, shards)
        if rank() == 0:
            index = BM25(corpus, self.progress) if part == "bm25" else index
            with written_aside(folder) as aside:
                index.save(aside)
                facts = {"part": part, "documents": len(corpus), "corpus_fingerprint": key}
                write_json(aside / "complete.json", facts | {"fingerprint": self._keys[part]})
        meet()  # until here another process may be reading the shards
        if rank() == 0:
            shutil.rmtree(shards, ignore_errors=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Another command of this machine that builds the same index is waited for; processes of one command share it."""
    if world_size() > 1:
        yield
        return
    locks = cache_folder() / "locks"
    locks.mkdir(exist_ok=True)
    with (locks / digest(str(folder.resolve()))[:16]).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another command builds {folder}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def join_processes() -> bool:
    """Under torchrun, meet the other processes, to share the embedding of documents; whether there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    return world_size() > 1


def _milvus():
    from koir.retrieval import milvus  # its client takes two seconds to import; most commands never need it

    return milvus


def digest(*values: object) -> str:
    """sha256 of values that JSON can hold, none of them a dictionary: what an index or a result is known by."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@functools.lru_cache(maxsize=8)
def _encoder(path: str) -> Encoder:
    device = torch.device("cuda", rank() % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    return load_encoder(path).to(device).eval()  # what is not training takes the sooner forward pass


def first_stage(
    spec: str,
    index_uri: str | None = None,
    progress: bool = True,
    fusion: str = "weighted",
    weight: float | None = None,
    encoder: Encoder | None = None,
    flag: str = "--first_stage",
) -> Callable:
    """A `--first_stage` flag's value as a FirstStage: a function from a corpus (id -> text) to its index.

    index_uri: the folder where indexes are kept, or the URI of a Milvus cluster or file; default: the cache. fusion,
    weight: how a hybrid's parts meet. encoder: the one that the flag names, where it is loaded already. flag: what
    an error calls it. An index has `.name`, `.ids`, `.search(queries, depth)` and, but for a hybrid, `.save(folder)`.
    Raises FlagError for an unknown first stage.
    """
    kind, path = kind_and_path(spec, flag)
    if fusion not in FUSIONS:
        raise FlagError(f"--fusion {fusion}", "an unknown fusion", " or ".join(FUSIONS) + nearest(fusion, FUSIONS))
    refuse_password(index_uri)
    uri = index_uri if index_uri and is_milvus(index_uri) else None
    if uri and kind != "milvus":
        raise FlagError(f"{flag} {spec}", f"a Milvus in --index_uri ({uri})", f"milvus:{path or 'PATH'}, or a folder")
    encoder = _encoder(path) if path and encoder is None else encoder
    store = Path(index_uri) if index_uri and not uri else cache_folder() / "indexes"
    return FirstStage(spec, store, encoder, fusion, weight, progress, uri)


def kind_and_path(spec: str, flag: str = "--first_stage", besides: str = "") -> tuple[str, str]:
    """One of KINDS and the PATH behind it, empty for bm25. Raises FlagError, in which `flag` was given, for others.

    besides: what else may be given there, for the message.
    """
    kind, _, path = spec.partition(":")
    if kind not in KINDS or bool(path) == (kind == "bm25"):
        hint = nearest(kind, KINDS) if kind not in KINDS else ""
        expected = f"{besides}bm25, dense:PATH, hybrid:PATH or milvus:PATH{hint}"
        raise FlagError(f"{flag} {spec}", "an unknown first stage", expected)
    return kind, path


def refuse_password(index_uri: str | None) -> None:
    """Raise FlagError for a URI with a password in it, since pipeline.json, run.json and process lists show URIs."""
    if index_uri and without_passwords(index_uri) != index_uri:
        raise FlagError(f"--index_uri {index_uri}", "a name or password in it", "them in MILVUS_TOKEN=name:password")


def is_milvus(index_uri: str) -> bool:
    """Whether a URI names a Milvus cluster or milvus-lite file rather than a folder of indexes."""
    return "://" in index_uri or index_uri.endswith(".db")


def in_memory(encoder: Encoder, progress: bool = False, bf16: bool = False, share: Callable | None = None) -> Callable:
    """An encoder that is being trained as a first stage; its index is never written. bf16, share: see Dense.build."""
    return lambda corpus: Dense.build(encoder, corpus, "dense", progress, bf16=bf16, share=share)
