"""Build the index of a corpus that evaluation and serving use; started again after an interruption, it goes on."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.errors import RunError, exit_on_user_error
from koir.evaluation.tasks import load_corpus
from koir.flags import parse, require
from koir.gather import rank
from koir.manifest import cache_folder, read_run
from koir.retrieval.hybrid import DENSE_SHARE
from koir.retrieval.opening import FACTS, describe, refuse_others
from koir.retrieval.stages import FUSIONS, first_stage, is_milvus, join_processes


@dataclass
class IndexArguments:
    """What is indexed, how, and where to."""

    corpus: str | None = field(
        default=None, metadata={"help": "BEIR folder, demo, or .jsonl[.gz] of {_id, title, text}; needed"}
    )
    first_stage: str = field(default="bm25", metadata={"help": "bm25, dense:PATH, hybrid:PATH or milvus:PATH"})
    index_uri: str | None = field(
        default=None,
        metadata={"help": "folder to write; with milvus:PATH also a .db file or a cluster (key: MILVUS_TOKEN); needed"},
    )
    fusion: str = field(default="weighted", metadata={"help": "of hybrid and milvus: weighted, or rrf (k = 60)"})
    weight: float | None = field(
        default=None,
        metadata={
            "help": f"of --fusion weighted: W in (1 - W) x BM25 + W x 25 x cosine, 0 to 1; default: {DENSE_SHARE}"
        },
    )


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Read the corpus, build what is missing, and write documents.jsonl and run.json beside it, the latter last."""
    (arguments,) = parse([IndexArguments], argv, __doc__, recipes=False)
    _check(arguments)
    if not is_milvus(arguments.index_uri):
        refuse_others(Path(arguments.index_uri))
    started, uri = time.perf_counter(), arguments.index_uri
    corpus = load_corpus(arguments.corpus)
    join_processes()
    stage = first_stage(arguments.first_stage, uri, True, arguments.fusion, arguments.weight)
    stage(corpus)
    if rank() > 0:
        return
    if is_milvus(uri):
        stage.describe_in_milvus(corpus)
        print(f"{len(corpus):,} documents: {stage.spec} at {uri} (what it was made from: {cache_folder() / 'indexes'})")
        return
    before = _said_of(Path(uri))
    describe(Path(uri), stage, corpus, wall_seconds=time.perf_counter() - started)
    if before not in (None, now := _said_of(Path(uri))):
        print(f"note: {uri} described {before} until now; it describes {now} from now on", file=sys.stderr)
    print(f"{len(corpus):,} documents: {stage.spec} in {uri}/")


def _said_of(folder: Path) -> str | None:
    """What a folder is served as: first stage, how its parts meet, and which corpus."""
    try:
        facts = read_run(folder, **FACTS, documents=int)
    except RunError:
        return None
    how = [facts["fusion"], "" if facts["weight"] is None else f"{facts['weight']:g}"]
    fusion = f" ({' '.join(how).strip()})" if facts["first_stage"].startswith("hybrid:") else ""
    corpus = f"{facts['documents']:,} documents (corpus {facts['corpus_fingerprint'][:8]})"
    return f"{facts['first_stage']}{fusion} over {corpus}"


def _check(arguments: IndexArguments) -> None:
    for flag in ("corpus", "index_uri"):
        require(bool(getattr(arguments, flag)), f"--{flag}", "nothing", "a value; see --help")
    require(arguments.fusion in FUSIONS, f"--fusion {arguments.fusion}", "an unknown value", " or ".join(FUSIONS))
    weight = arguments.weight
    require(arguments.fusion == "weighted" or weight is None, "--weight", str(weight), "--fusion weighted with it")
    require(weight is None or 0 <= weight <= 1, "--weight", str(weight), "0 to 1")
    fused = arguments.first_stage.startswith(("hybrid:", "milvus:"))
    require(fused or weight is None, "--weight", str(weight), "a hybrid or milvus first stage with it")
    milvus = arguments.first_stage.startswith("milvus:")
    require(
        milvus or not is_milvus(arguments.index_uri), "--index_uri", arguments.index_uri, "a folder, or milvus:PATH"
    )


if __name__ == "__main__":
    main()
