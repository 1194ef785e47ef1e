"""The flags of evaluate.py: what is scored, and on what."""

import sys
from dataclasses import dataclass, field

from koir.evaluation.hub import BENCHMARKS
from koir.evaluation.metrics import KS
from koir.flags import require
from koir.retrieval.hybrid import DENSE_SHARE
from koir.retrieval.ranking import SCALES
from koir.retrieval.score_maps import SCORE_MAPS
from koir.retrieval.stages import FUSIONS, is_milvus


@dataclass
class EvaluateArguments:
    """What is scored."""

    first_stage: list[str] = field(
        default_factory=list,
        metadata={
            "help": "bm25, dense:PATH, hybrid:PATH, milvus:PATH (run folder, model folder, hub name, demo); default: "
            "bm25, the newest run (else demo) and its base, and its hybrid"
        },
    )
    reranker: list[str] = field(
        default_factory=list,
        metadata={
            "help": "none, or PATHs of cross-encoders; each first stage is scored alone too; default: none, or without "
            "--first_stage the newest run (beside demo: demo)"
        },
    )
    depth: list[int] = field(
        default_factory=lambda: [50],
        metadata={
            "help": "candidates handed to the reranker; several are all scored; where a task gives the candidates "
            "(MIRACLReranking), it is handed all of them"
        },
    )
    fusion: str = field(default="weighted", metadata={"help": "of hybrid and milvus: weighted, or rrf (k = 60)"})
    weight: str | None = field(
        default=None,
        metadata={
            "help": "of --fusion weighted: W in (1 - W) x BM25 + W x 25 x cosine, 0 to 1, or auto: chosen on dev; "
            f"default: {DENSE_SHARE}"
        },
    )
    interpolate: str | None = field(
        default=None,
        metadata={
            "help": "also score a mixture with the first stage: the reranker's share, 0 to 1, or auto: of those that "
            "make no dev task worse, the smallest within a standard error of the best; default: no mixture"
        },
    )
    normalise: str = field(
        default="minmax",
        metadata={
            "help": "how --interpolate brings both scores to one scale: minmax, z, or raw: as they are, which keeps "
            "how sure bm25 and weighted hybrids are"
        },
    )
    score_map: str = field(
        default="sigmoid",
        metadata={
            "help": "how a server shows scores, saved in pipeline.json: sigmoid, raw, exp_normalize (softmax over the "
            "candidates: not comparable between queries); ranking is by raw logits always"
        },
    )
    passage_tokens: int | None = field(
        default=None,
        metadata={
            "help": "rerankers read longer documents in passages of so many tokens, a quarter of each also in the one "
            "before, and the best counts; default: their beginnings, as far as the reranker reads"
        },
    )
    pipeline: str | None = field(
        default=None, metadata={"help": "a pipeline.json, in place of the flags above; default: none"}
    )
    index_uri: str | None = field(
        default=None, metadata={"help": "folder where indexes are kept, or a Milvus cluster's URI; default: the cache"}
    )


@dataclass
class TaskArguments:
    """On what, and where results go."""

    tasks: list[str] = field(
        default_factory=list, metadata={"help": "BEIR folders, demo, or mteb's Korean tasks by name; default: demo"}
    )
    benchmark: str | None = field(
        default=None, metadata={"help": "koe5 (three tasks) or kor-v2 (nine), in place of --tasks; default: none"}
    )
    data_root: str | None = field(
        default=None, metadata={"help": "copies of mteb's dataset repositories, by hub name; default: ask the hub"}
    )
    split: str = field(default="test", metadata={"help": "split of every task (mteb's tasks may have but one)"})
    dev_tasks: list[str] = field(
        default_factory=list, metadata={"help": "where `auto` is chosen; default: the --tasks that have a dev split"}
    )
    dev_queries: int = field(default=300, metadata={"help": "queries of each dev split that `auto` looks at"})
    output_dir: str = field(default="results", metadata={"help": "where <pipeline>/<task>.json goes"})
    json: str | None = field(default=None, metadata={"help": "also write all results to this file"})
    reproduce: str | None = field(
        default=None, metadata={"help": "compare with published cells, results/published/*.json; default: no"}
    )
    check: str | None = field(
        default=None,
        metadata={
            "help": "like --reproduce, and exit with 1 where a cell is off; without --first_stage, what a file of "
            "results/expected/ names is measured anew, and nothing is kept; default: no"
        },
    )
    tolerance: float | None = field(
        default=None, metadata={"help": "how far a cell may be off, scores from 0 to 1; default: the file's"}
    )
    bf16: bool = field(
        default=False,
        metadata={"help": "rerankers multiply in bfloat16 where the chip has it: faster, logits move by about 1%"},
    )
    whole: bool = field(default=False, init=False)  # whether every cell of --check has to be measured


def check(what: EvaluateArguments, where: TaskArguments) -> None:
    """Refuse values that are unknown or do not go together: FlagError, before any work."""
    for flag, value, known in (
        ("--fusion", what.fusion, FUSIONS),
        ("--normalise", what.normalise, SCALES),
        ("--score_map", what.score_map, SCORE_MAPS),
        ("--benchmark", where.benchmark or "koe5", BENCHMARKS),
    ):
        require(value in known, f"{flag} {value}", "an unknown value", " or ".join(known))
    require(not (where.benchmark and where.tasks), "--benchmark and --tasks", "both", "one of them")
    for flag, value in (("--weight", what.weight), ("--interpolate", what.interpolate)):
        require(value in (None, "auto") or share(value) is not None, f"{flag} {value}", "no share", "auto, or 0 to 1")
    require(what.fusion == "weighted" or what.weight is None, "--weight", str(what.weight), "--fusion weighted with it")
    fused = not what.first_stage or any(spec.startswith(("hybrid:", "milvus:")) for spec in what.first_stage)
    require(fused or what.weight is None, "--weight", str(what.weight), "a hybrid or milvus first stage with it")
    milvus, uri = any(spec.startswith("milvus:") for spec in what.first_stage), what.index_uri
    idle = uri is not None and is_milvus(uri) and not (milvus or what.pipeline)
    require(not idle, f"--index_uri {uri}", "a Milvus", "milvus:PATH in --first_stage with it, or a folder")
    require(min(what.depth, default=0) > 0, "--depth", str(what.depth), "numbers above 0")
    reranked = any(path != "none" for path in what.reranker) or not (what.first_stage or what.reranker)
    require(reranked or what.interpolate is None, "--interpolate", str(what.interpolate), "--reranker with it")
    if (tokens := what.passage_tokens) is not None:
        require(reranked, "--passage_tokens", str(tokens), "--reranker with it")
        require(tokens > 0, f"--passage_tokens {tokens}", "no length", "a number above 0")
    require(where.dev_queries > 0, "--dev_queries", str(where.dev_queries), "a number above 0")
    given = EvaluateArguments(pipeline=what.pipeline, index_uri=what.index_uri)
    require(what.pipeline is None or what == given, "--pipeline", "other flags that choose a pipeline", "it alone")
    chosen = "auto" in (what.weight, what.interpolate)
    for flag, value, used, beside in (
        ("--fusion", what.fusion, fused or what.fusion == "weighted", "a hybrid or milvus first stage"),
        ("--normalise", what.normalise, what.interpolate is not None or what.normalise == "minmax", "--interpolate"),
        ("--score_map", what.score_map, reranked or what.score_map == "sigmoid", "--reranker"),
        ("--dev_tasks", " ".join(where.dev_tasks), chosen or not where.dev_tasks, "--weight or --interpolate auto"),
        (
            "--tolerance",
            where.tolerance,
            where.tolerance is None or where.check or where.reproduce,
            "--check or --reproduce",
        ),
    ):
        require(bool(used), flag, str(value), f"{beside} with it")
    if reranked and what.depth and min(what.depth) < max(KS):
        print(f"note: with --depth {min(what.depth)} a list ends after so many; it is held against the first stage's "
              "as far as it reaches", file=sys.stderr)  # fmt: skip


def share(text: str) -> float | None:
    """A number from 0 to 1, or None where the text is none."""
    try:
        return float(text) if 0 <= float(text) <= 1 else None
    except ValueError:
        return None
