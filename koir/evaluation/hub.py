"""Korean tasks of mteb by name: from the hub, or from copies of their dataset repositories under --data_root."""

import contextlib
import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from koir.errors import TaskError
from koir.manifest import cache_folder

# name -> mteb's subset, and the splits it reports on
KOREAN = {
    "Ko-StrategyQA": ("default", ["dev"]),
    "AutoRAGRetrieval": ("default", ["test"]),
    "PublicHealthQA": ("korean", ["test"]),
    "BelebeleRetrieval": ("kor_Hang-kor_Hang", ["test"]),
    "SQuADKorV1Retrieval": ("default", ["test"]),
    "LawIRKo": ("default", ["test"]),
    "MIRACLRetrieval": ("ko", ["dev"]),
    "MrTidyRetrieval": ("korean", ["test"]),
    "MultiLongDocRetrieval": ("ko", ["dev", "test"]),
    "XPQARetrieval": ("kor-kor", ["test"]),
    "MIRACLReranking": ("ko", ["dev"]),
}
BENCHMARKS = {
    "koe5": ["Ko-StrategyQA", "AutoRAGRetrieval", "PublicHealthQA"],
    "kor-v2": [
        "Ko-StrategyQA", "AutoRAGRetrieval", "PublicHealthQA", "BelebeleRetrieval", "SQuADKorV1Retrieval", "LawIRKo",
        "MIRACLRetrieval", "MrTidyRetrieval", "MultiLongDocRetrieval",
    ],
}  # fmt: skip


def load_korean(name: str, split: str, data_root: str | None) -> tuple[dict, dict, dict, dict | None]:
    """Queries, corpus, qrels and candidates (None but for reranking tasks) of one of KOREAN, read by mteb itself.

    data_root: a folder that holds each dataset repository under its hub name; None asks the hub. A title stands before
    its text after one space, as mteb joins them. Raises TaskError where the data is at neither place.
    """
    with contextlib.redirect_stdout(None):
        import mteb

    logging.getLogger("mteb").setLevel(logging.ERROR)
    subset = KOREAN[name][0]
    task = mteb.get_task(name, hf_subsets=[subset], eval_splits=[split])
    repository, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]
    get = f"hf download --repo-type dataset {repository} --revision {revision} --local-dir DATA_ROOT/{repository}"
    if data_root:
        copy = Path(data_root) / repository
        if not copy.is_dir():
            raise TaskError(f"task {name}", f"no folder {copy}", f"a copy of the hub's: {get}")
        task.metadata = task.metadata.model_copy(update={"dataset": {"path": str(copy.resolve()), "revision": None}})
    elif os.environ.get("HF_HUB_OFFLINE") == "1":
        raise TaskError(f"task {name}", "HF_HUB_OFFLINE=1 and no --data_root", f"the hub, or --data_root and {get}")
    try:
        with _own_cache(copy) if data_root else contextlib.nullcontext():
            task.load_data()
        task.convert_v1_dataset_format_to_v2(None)
        data = task.dataset[subset][split]
    except Exception as error:  # readers of many formats and the hub client raise many kinds
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        where = f"the dataset repository whole in {copy}" if data_root else f"a reachable hub, or --data_root and {get}"
        raise TaskError(f"task {name}", found, where) from None
    return _plain(data)


@contextlib.contextmanager
def _own_cache(copy: Path) -> Iterator[None]:
    """Let `datasets` convert this copy into a cache of its own; its usual one takes copies of one name for the same."""
    import datasets

    files = sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in copy.resolve().rglob("*"))
    usual = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = (
        cache_folder() / "datasets" / hashlib.sha256(repr(files).encode()).hexdigest()[:24]
    )
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = usual


def _plain(data: dict) -> tuple[dict, dict, dict, dict | None]:
    qrels = {
        query: {document: int(grade) for document, grade in answers.items() if grade > 0}
        for query, answers in data["relevant_docs"].items()
    }
    texts = {row["id"]: unicodedata.normalize("NFC", row["text"]) for row in data["queries"]}
    queries = {query: texts[query] for query in sorted(texts) if qrels.get(query)}  # mteb's order changes between runs
    qrels = {query: qrels[query] for query in queries}
    corpus = {
        row["id"]: unicodedata.normalize("NFC", f"{row.get('title') or ''} {row['text']}".strip())
        for row in data["corpus"]
    }
    candidates = data.get("top_ranked")
    candidates = {query: list(candidates[query]) for query in qrels} if candidates else None
    return queries, corpus, qrels, candidates
