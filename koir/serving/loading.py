"""From flags, a pipeline.json or a models file to loaded models."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from koir.encoder import load_encoder
from koir.errors import FlagError, RunError, nearest
from koir.evaluation.pipeline import DEPTH, Pipeline, read_pipeline
from koir.evaluation.tasks import load_task
from koir.flags import require
from koir.kernels.bfloat16 import or_float32
from koir.manifest import model_folder, newest_run, read_run
from koir.reranker import load_reranker
from koir.retrieval.opening import described, index_folder, open_index
from koir.retrieval.score_maps import SCORE_MAPS
from koir.retrieval.stages import first_stage, is_milvus, kind_and_path
from koir.serving.batching import on_device
from koir.serving.models import ServedEncoder, ServedReranker
from koir.serving.registry import Registry
from koir.serving.search import MOST_CANDIDATES, Documents, ServedPipeline
from koir.yaml_text import as_text, read_yaml

DTYPES = ("auto", "float32", "bfloat16")


@dataclass
class ServedArguments:
    """What is served."""

    first_stage: str | None = field(
        default=None,
        metadata={"help": "dense:PATH or hybrid:PATH, whose encoder embeds; default: the newest run, else demo"},
    )
    reranker: str | None = field(
        default=None,
        metadata={
            "help": "run folder, model folder, hub name or demo; none; default: the newest run, else demo beside demo"
        },
    )
    index_uri: str | None = field(
        default=None,
        metadata={
            "help": "for /v1/search, what scripts/build_index.py or evaluate.py wrote: a folder, a .db file or a "
            "Milvus cluster (key: MILVUS_TOKEN); default: the pipeline's, or without both "
            "--pipeline and --first_stage the demo's corpus"
        },
    )
    depth: int | None = field(
        default=None, metadata={"help": f"candidates that /v1/search reranks; default: the pipeline's, else {DEPTH}"}
    )
    pipeline: str | None = field(
        default=None, metadata={"help": "a pipeline.json of evaluate.py in place of the flags above; default: none"}
    )
    models: str | None = field(
        default=None, metadata={"help": "a YAML list of {name, encoder|reranker|pipeline: PATH}; default: none"}
    )
    score_map: str | None = field(
        default=None,
        metadata={
            "help": "how scores are shown where no logits are asked for: sigmoid, raw, exp_normalize (softmax "
            "over a request's documents: not comparable between requests); default: a pipeline.json's for its "
            "/v1/search, else sigmoid"
        },
    )
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, cuda:1; default: cuda where there is one"})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "of matrix products: float32; bfloat16 where the chip has it (scores move by 0.01), elsewhere "
            "float32 with a line that says so; auto: the same without the line"
        },
    )
    chunk_tokens: int | None = field(
        default=None,
        metadata={"help": "padded tokens that go through a model at once; default: 2048 on a CPU, else 32768"},
    )
    max_queue: int = field(default=32768, metadata={"help": "texts at a model, or searches, before new ones get 429"})


class Loader:
    """Loads models once each, however many pipelines share them, and puts them in a registry."""

    def __init__(self, arguments: ServedArguments):
        self.arguments, self.registry, self.loaded = arguments, Registry(), {}
        require(
            arguments.dtype in DTYPES, "--dtype", arguments.dtype, ", ".join(DTYPES) + nearest(arguments.dtype, DTYPES)
        )
        require(arguments.chunk_tokens is None or arguments.chunk_tokens >= 1, "--chunk_tokens",
                str(arguments.chunk_tokens), "at least 1")  # fmt: skip
        shown = arguments.score_map or "sigmoid"
        require(shown in SCORE_MAPS, "--score_map", shown, ", ".join(SCORE_MAPS) + nearest(shown, SCORE_MAPS))
        require(arguments.max_queue >= 1, "--max_queue", str(arguments.max_queue), "at least 1")
        given = arguments.depth
        require(given is None or 1 <= given <= MOST_CANDIDATES, "--depth", str(given), f"1 to {MOST_CANDIDATES:,}")
        try:
            self.device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise FlagError(f"--device {arguments.device}", str(error).splitlines()[0][:100], "cpu or cuda") from None
        wanted = arguments.dtype
        self.bf16 = or_float32(wanted != "float32", self.device, "--dtype bfloat16", loud=wanted == "bfloat16")

    def reranker(self, path: str, name: str | None = None) -> ServedReranker:
        """Load a reranker, or find it loaded."""
        return self._once(ServedReranker, load_reranker, path, name)

    def encoder(self, path: str, name: str | None = None) -> ServedEncoder:
        """Load an encoder, or find it loaded."""
        return self._once(ServedEncoder, load_encoder, path, name)

    def _once(self, kind: type, load_model: Callable, path: str, name: str | None):
        there = path != "demo" and Path(path).exists()
        key = kind, str(Path(model_folder(path)).resolve()) if there else path  # however it is spelt
        if key not in self.loaded:
            name = name or name_of(path)
            taken = name in self.registry.by_kind[kind.kind]
            require(not taken, f"{kind.kind} {path}", f"another one called {name}", "a name of its own, by --models")
            model = load_model(path).to(self.device)
            self.loaded[key] = kind(name, model, self.bf16, self.arguments.chunk_tokens, self.arguments.max_queue)
            self.registry.add(self.loaded[key])
        own = self.loaded[key].name
        require(name in (None, own), f"--models, {name}", f"the {kind.kind} that is served as {own}", "each model once")
        return self.loaded[key]

    def search(
        self, pipeline: Pipeline, name: str, encoder: ServedEncoder | None, reranker: ServedReranker | None
    ) -> ServedPipeline:
        """Open a pipeline's index (without one: the demo's corpus is indexed) and serve its search."""
        uri, spec, how = pipeline.index_uri, pipeline.first_stage, (pipeline.fusion, pipeline.weight)
        model = encoder.model if encoder else None
        if uri:
            index = open_index(uri, False, spec, *how, model)
            texts_of = index.dense.texts if is_milvus(uri) else _documents(index_folder(uri))
        else:
            corpus = load_task("demo").corpus
            index = first_stage(spec, None, False, how[0] or "weighted", how[1], model)(corpus)
            texts_of = lambda ids: {document: corpus[document] for document in ids}  # noqa: E731
        index.search(["첫 질의"], 1, *([np.eye(1, model.dimensions, dtype=np.float32)] if model else []))  # loads Kiwi
        pipeline = replace(pipeline, score_map=self.arguments.score_map or pipeline.score_map)
        served = ServedPipeline(name, index, texts_of, pipeline, encoder, reranker, self.arguments.max_queue)
        self.registry.add(served)
        return served


def _documents(folder: Path) -> Documents:
    count = read_run(folder).get("documents")
    return Documents(folder / "documents.jsonl", count if isinstance(count, int) else None)


def name_of(path: str) -> str:
    """What a model is called: its folder, or its hub name."""
    folder = Path(path)
    if not folder.exists():
        return path
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def load(arguments: ServedArguments) -> Registry:
    """All models that the flags ask for. Says on stderr what was taken by default and what is left out."""
    return on_device(_load, arguments)


def _load(arguments: ServedArguments) -> Registry:
    loader = Loader(arguments)
    said = {"pipeline": ["first_stage", "reranker"]}  # what the file says already
    said["models"] = [*said["pipeline"], "index_uri", "depth", "pipeline"]
    for flag, others in said.items():
        given = [other for other in others if getattr(arguments, other) is not None]
        if getattr(arguments, flag) and given:
            raise FlagError(f"--{flag}", f"--{given[0]} too", "one of them; the file says the rest")
    if arguments.models:
        _from_file(loader, Path(arguments.models))
    elif arguments.pipeline:
        pipeline = read_pipeline(arguments.pipeline)
        uri, depth = arguments.index_uri or pipeline.index_uri, arguments.depth or pipeline.depth
        searched = arguments.index_uri is not None or _searchable(uri)
        _pipeline(loader, replace(pipeline, index_uri=uri, depth=depth), _pipeline_name(arguments.pipeline), searched)
    else:
        _from_flags(loader, arguments)
    for served in loader.registry.batching:
        served.settle()
    return loader.registry


def _from_flags(loader: Loader, arguments: ServedArguments) -> None:
    spec = arguments.first_stage
    if spec is None and arguments.index_uri:
        spec = described(arguments.index_uri)["first_stage"]
    elif spec is None:
        spec = f"dense:{_newest('encoder') or 'demo'}"
        _say(f"--first_stage {spec}")
    reranker = arguments.reranker
    if reranker is None:
        untrained = "demo" if spec == "dense:demo" else "none"  # the demo's is no match for somebody's own encoder
        reranker = str(_newest("reranker") or untrained)
        why = " (no complete reranker run): no reranking" if reranker == "none" else ""
        _say(f"--reranker {reranker}{why}")
    pipeline = Pipeline(
        spec,
        arguments.index_uri,
        reranker=None if reranker == "none" else reranker,
        depth=arguments.depth or DEPTH,
    )
    searched = arguments.index_uri is not None or arguments.first_stage is None
    if searched and not arguments.index_uri:
        _say("--index_uri: the demo's corpus")
    _pipeline(loader, pipeline, "search", searched)
    if not searched:
        print("note: there is no /v1/search without --index_uri FOLDER (scripts/build_index.py)", file=sys.stderr)


def _searchable(uri: str | None) -> bool:
    """Whether what a pipeline names as its index says which corpus it holds; if not, why goes to stderr."""
    try:
        if uri is not None and not is_milvus(uri):
            index_folder(uri)
    except RunError as error:
        _say(f"no search; {error}")
        return False
    if uri is None:
        print("note: there is no /v1/search, since pipeline.json names no index (--index_uri FOLDER)", file=sys.stderr)
    return uri is not None


def _pipeline(loader: Loader, pipeline: Pipeline, name: str, searched: bool = True) -> None:
    """Serve a pipeline's encoder, its reranker, and its search where there is a corpus."""
    few, most = pipeline.depth <= MOST_CANDIDATES, f"at most {MOST_CANDIDATES:,} (--depth, beside --pipeline)"
    require(few or not searched, f"pipeline {name}, depth", f"{pipeline.depth:,}", most)
    kind, path = kind_and_path(pipeline.first_stage)
    encoder = loader.encoder(path) if path else None
    reranker = loader.reranker(pipeline.reranker) if pipeline.reranker else None
    if searched:
        loader.search(pipeline, name, encoder, reranker)
    elif kind == "bm25" and not (reranker and loader.arguments.pipeline):
        raise FlagError(f"--first_stage {pipeline.first_stage}", "nothing to search", "--index_uri with its index")


def _from_file(loader: Loader, file: Path) -> None:
    """A YAML list of models; a pipeline's models may be named by other lines, and are loaded once."""
    place = f"--models {file}"
    try:
        rows = read_yaml(file, place, "a readable YAML list")
    except OSError as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]
        raise FlagError(place, found, "a readable YAML list") from None
    if not isinstance(rows, list) or not rows:
        found = as_text(rows, place)[:80] if rows else "nothing"
        raise FlagError(place, found, "a list of {name, encoder|reranker|pipeline: PATH}")
    seen = set()
    for number, row in enumerate(rows, 1):
        kinds = [kind for kind in ("encoder", "reranker", "pipeline") if isinstance(row, dict) and kind in row]
        good = len(kinds) == 1 and set(row) <= {"name", *kinds} and all(isinstance(text, str) for text in row.values())
        found = "" if good else as_text(row, f"{place}, entry {number}")[:80]
        require(good, f"{place}, entry {number}", found, "a name and one of encoder, reranker, pipeline, all texts")
        (kind,) = kinds
        name = row.get("name") or (_pipeline_name(row[kind]) if kind == "pipeline" else name_of(row[kind]))
        require((kind, name) not in seen, f"{place}, entry {number}", f"the {kind} {name} again", "each name once")
        seen.add((kind, name))
    for kind in ("encoder", "reranker", "pipeline"):
        for row in (row for row in rows if kind in row):
            if kind == "pipeline":
                pipeline = read_pipeline(row[kind])
                expected = "one with index_uri"
                require(
                    pipeline.index_uri is not None, f"{place}, {row[kind]}", "a pipeline without an index", expected
                )
                _pipeline(loader, pipeline, row.get("name") or _pipeline_name(row[kind]))
            else:
                getattr(loader, kind)(row[kind], row.get("name"))


def _pipeline_name(file: str) -> str:
    return Path(file).resolve().parent.name


def _newest(kind: str) -> Path | None:
    try:
        return newest_run(kind)
    except RunError:
        return None


def _say(what: str) -> None:
    print(f"default: {what}", file=sys.stderr)
