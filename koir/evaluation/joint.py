"""First stages and rerankers together: every combination on a task, each first stage's candidates computed once."""

import functools
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from koir.errors import FlagError
from koir.evaluation.fitting import choose_weight, remembered
from koir.evaluation.metrics import evaluate_run
from koir.evaluation.pipeline import (
    DEPTH,
    Evaluated,
    Pipeline,
    candidate_recall,
    comparison,
    evaluate_first_stage,
    evaluated,
    task_fingerprint,
)
from koir.evaluation.reranking import Reranked, final_run, mixture, rerank
from koir.evaluation.results import kept_result, what_is_replaced, write_result
from koir.evaluation.tasks import Task
from koir.flags import require
from koir.reranker import Reranker, load_reranker
from koir.retrieval.dense import model_fingerprint
from koir.retrieval.hybrid import FETCH, weighted
from koir.retrieval.opening import describe
from koir.retrieval.stages import FirstStage, corpus_fingerprint, digest, first_stage, is_milvus
from koir.tokens import some_of


@dataclass
class Settings:
    """What is combined. weight, interpolate: None (off), "auto" (chosen on dev) or a number from 0 to 1.

    chosen_on: the splits that numbers were chosen on, where that is known.
    """

    first_stages: Sequence[str]
    rerankers: Sequence[str] = ()
    depths: Sequence[int] = (DEPTH,)
    index_uri: str | None = None
    fusion: str = "weighted"
    weight: str | float | None = None
    interpolate: str | float | None = None
    normalise: str = "minmax"
    score_map: str = "sigmoid"
    progress: bool = True
    bf16: bool = False  # of rerankers
    chosen_on: list[str] | None = None
    passage_tokens: int | None = None

    def depths_of(self, task: Task) -> list[int]:
        """How deep rerankers go: --depth, or through all candidates where the task itself gives them."""
        if task.candidates is None:
            return sorted(set(self.depths))
        return [max(map(len, task.candidates.values()))]

    def kept(self, task: Task) -> int:
        """Candidates of each first stage."""
        return max(DEPTH, *self.depths_of(task))


class Joint:
    """Evaluates one task after another; what was chosen on dev and what is on disk is used again."""

    def __init__(self, settings: Settings, dev_tasks: Sequence[Task], output_dir: Path):
        self.settings, self.dev_tasks, self.output_dir = settings, list(dev_tasks), output_dir
        self._told: set[tuple[str, str]] = set()  # of which reranker on which task it was said what it cannot read
        self._dev_on = [f"{task.name}/{task.split}" for task in self.dev_tasks]
        if "auto" in (settings.weight, settings.interpolate) and not self.dev_tasks:
            raise FlagError("auto", "no task with a dev split", "--dev_tasks to choose the weight on, or a number")

    @functools.cache  # noqa: B019 (one object a command)
    def stage(self, spec: str) -> FirstStage:
        """A first stage with its encoder, and its weight where it has one."""
        s = self.settings
        stage = first_stage(spec, self._index_uri(spec), s.progress, s.fusion, None)
        if stage.fuses and s.weight is not None:
            stage.weight = self._chosen_hybrid_weight(stage) if s.weight == "auto" else s.weight
        return stage

    @functools.cache  # noqa: B019
    def reranker(self, path: str) -> tuple[Reranker, str]:
        """A reranker and the sha256 of all its scores depend on. Raises FlagError for passages too long for it."""
        model = load_reranker(path).to("cuda" if torch.cuda.is_available() else "cpu")
        read_how = [model.max_seq_length, "bf16"] if self.settings.bf16 else [model.max_seq_length]
        if tokens := self.settings.passage_tokens:
            most = model.max_seq_length * 3 // 4  # a question is to fit beside it
            require(tokens <= most, "--passage_tokens", str(tokens), f"at most {most}, of the {model.max_seq_length} "
                    f"that {path} reads of both texts")  # fmt: skip
            read_how.append(f"passages of {tokens}")
        return model, model_fingerprint(model, read_how)

    def build(self, tasks: Sequence[Task]) -> None:
        """Build every index that will be needed; with several processes all take part."""
        s = self.settings
        for spec in s.first_stages:
            for task in [*tasks, *self.dev_tasks]:
                first_stage(spec, self._index_uri(spec), s.progress, s.fusion, None)(task.corpus)

    def _index_uri(self, spec: str) -> str | None:
        """Where a first stage's indexes are kept: beside a Milvus, which holds no others' parts, in the cache."""
        uri = self.settings.index_uri
        return None if uri and is_milvus(uri) and not spec.startswith("milvus:") else uri

    def evaluate(self, task: Task) -> list[Evaluated]:
        """All combinations on one task, written as they are done; the first stages alone among them."""
        rows, baselines = [], {}
        for spec in self.settings.first_stages:
            baseline = self._first_stage(task, spec)
            baselines[spec] = baseline
            others = [other for other in baselines.values() if other is not baseline]
            rows.append(self._compared(baseline, others, task))
            for path in self.settings.rerankers:
                rows += [self._compared(row, [baseline], task) for row in self._reranked(task, spec, baseline, path)]
        self._keep_indexes(task)
        return rows

    def _keep_indexes(self, task: Task) -> None:
        """With --index_uri: all indexes are there, even of results that were read from disk, and described."""
        s = self.settings
        if s.index_uri is None:
            return
        for stage in map(self.stage, s.first_stages):
            if not stage.is_complete(corpus_fingerprint(task.corpus)):
                stage(task.corpus)
        if not is_milvus(s.index_uri):
            describe(Path(s.index_uri) / task.name, stage, task.corpus)

    def _first_stage(self, task: Task, spec: str) -> Evaluated:
        stage, s = self.stage(spec), self.settings
        fusion = s.fusion if stage.fuses else None
        chosen = (self._dev_on if s.weight == "auto" else s.chosen_on) if stage.weight is not None else None
        pipeline = Pipeline(spec, self._index_uri(spec), fusion, stage.weight, None, s.kept(task), chosen_on=chosen)
        made_of = digest(stage.fingerprint, fusion, stage.weight)
        key = digest(stage.fingerprint, fusion, stage.weight, s.kept(task), task_fingerprint(task))
        return self._once(pipeline, task, key, made_of, lambda: evaluate_first_stage(stage, task, pipeline, key))

    def _reranked(self, task: Task, spec: str, baseline: Evaluated, path: str) -> list[Evaluated]:
        (_, fingerprint), s = self.reranker(path), self.settings
        depths = s.depths_of(task)
        scored: Callable[[], Reranked] = functools.cache(lambda: self._logits(task, baseline.run, path, depths))
        rows = []
        for depth in depths:
            for weight in self._shares(spec, path, min(depth, max(s.depths))):
                pipeline = self._pipeline(baseline, path, depth, weight)
                scale = s.normalise if weight is not None else None
                koir, how = baseline.content["koir"], (fingerprint, depth, weight, scale)
                key = digest(koir["key"], *how)
                make = functools.partial(self._final, task, baseline, scored, pipeline, key)
                rows.append(self._once(pipeline, task, key, digest(koir["pipeline_key"], *how), make))
        return rows

    def _logits(self, task: Task, run: dict, path: str, depths: list[int]) -> Reranked:
        """The reranker over the candidates; how many of some pairs it did not read to the end is said, once a task."""
        model, s = self.reranker(path)[0], self.settings
        progress = f"{path} on {task.name}" if s.progress else None
        done = rerank(model, task, run, depths, progress, s.bf16, s.passage_tokens)
        if s.progress and not s.passage_tokens and (path, task.name) not in self._told:
            self._told.add((path, task.name))
            keys = some_of([(query, id) for query, found in done.logits.items() for id in found])
            if longer := model.too_long([(task.queries[query], task.corpus[id]) for query, id in keys]):
                what = f"{longer:,} of {len(keys):,} looked at on {task.name} have more, and their ends were not read"
                tqdm.write(f"note: {path} reads {model.max_seq_length:,} tokens of a query and a document; {what} "
                           "(--passage_tokens reads whole documents)", sys.stderr)  # fmt: skip
        return done

    def _pipeline(self, baseline: Evaluated, path: str, depth: int, weight: float | None) -> Pipeline:
        first, s = Pipeline(**baseline.content["koir"]["pipeline"]), self.settings
        chosen = first.chosen_on
        if weight is not None:
            chosen = self._dev_on if s.interpolate == "auto" else s.chosen_on or chosen
        scale = s.normalise if weight is not None else None
        changes = {"reranker": path, "depth": depth, "interpolate": weight, "normalise": scale}
        changes |= {"passage_tokens": s.passage_tokens, "score_map": s.score_map, "chosen_on": chosen}
        return replace(first, **changes)

    def _final(
        self, task: Task, baseline: Evaluated, scored: Callable[[], Reranked], pipeline: Pipeline, key: str
    ) -> Evaluated:
        done, depth, scale = scored(), pipeline.depth, pipeline.normalise or "minmax"
        run = {
            query: final_run(baseline.run[query], done.logits[query], depth, pipeline.interpolate, scale)
            for query in task.queries
        }
        first = baseline.content["koir"]["latency"]
        ms = 1000 * done.seconds[depth] / len(task.queries)
        speed = done.pairs[depth] / max(done.seconds[depth], 1e-9)
        latency = {"index_seconds": first["index_seconds"], "first_stage_ms": first["first_stage_ms"]}
        latency |= {"reranker_ms": ms, "total_ms": first["first_stage_ms"] + ms, "pairs_per_second": speed}
        recall = candidate_recall(task.qrels, baseline.run, depth)
        return evaluated(pipeline, task, run, recall, latency, key, done.seconds[depth])

    def _once(self, pipeline: Pipeline, task: Task, key: str, made_of: str, make: Callable[[], Evaluated]) -> Evaluated:
        """The result on disk where its key is the same, else a new one, written at once. made_of: its pipeline_key."""
        folder = self.output_dir / pipeline.name
        if found := kept_result(folder, task.name, task.split, key):
            content, run = found
            content["koir"] |= {"pipeline": pipeline.content(), "pipeline_key": made_of}
            return Evaluated(evaluate_run(task.qrels, run), run, content)
        given = pipeline.interpolate if isinstance(self.settings.interpolate, float) else None
        if note := what_is_replaced(folder, task.name, task.split, task_fingerprint(task), given):
            print(note, file=sys.stderr)
        done = make()
        done.content["koir"]["pipeline_key"] = made_of
        write_result(folder, done.content, done.run, task.qrels, top=self.settings.kept(task))
        return done

    def _compared(self, row: Evaluated, others: Sequence[Evaluated], task: Task) -> Evaluated:
        koir = row.content["koir"]
        koir["comparisons"] = [comparison(row, other, other.content["koir"]["name"]) for other in others]
        spec, path = koir["pipeline"]["first_stage"], koir["pipeline"]["reranker"]
        koir["parameters"] = {"first_stage": _size(self.stage(spec).encoder)}
        koir["parameters"]["reranker"] = _size(self.reranker(path)[0] if path else None)
        write_result(self.output_dir / koir["name"], row.content, row.run, task.qrels, top=self.settings.kept(task))
        return row

    # --- weights, chosen on dev ---

    def _shares(self, spec: str, path: str, depth: int) -> list[float | None]:
        """The reranker's shares to evaluate: all of it, and where --interpolate is given, that share."""
        asked = self.settings.interpolate
        if asked is None:
            return [None]
        return [None, self._chosen_share(spec, path, depth) if asked == "auto" else float(asked)]

    def _chosen_hybrid_weight(self, stage: FirstStage) -> float:
        def choose():
            tasks = []
            for task in self.dev_tasks:
                parts = stage(task.corpus).parts(list(task.queries.values()), FETCH)
                pairs = {query: weighted(*runs) for query, runs in zip(task.queries, parts, strict=True)}
                tasks.append((task.qrels, pairs))
            return choose_weight(tasks)

        key = ["bm25 + cosine", stage.fingerprint, FETCH, *map(task_fingerprint, self.dev_tasks)]
        weight = remembered(key, choose)
        self._say_chosen("weight", weight, stage.spec)
        if weight == 0:
            print(f"note: --weight auto is 0: {stage.spec} is BM25 then", file=sys.stderr)
        return weight

    def _say_chosen(self, flag: str, weight: float, what: str) -> None:
        print(f"{flag}: {weight:g} for {what}, chosen on {', '.join(self._dev_on)}", file=sys.stderr)

    @functools.cache  # noqa: B019 (said once, however many tasks follow)
    def _chosen_share(self, spec: str, path: str, depth: int) -> float:
        stage, scale = self.stage(spec), self.settings.normalise

        def choose():
            tasks = []
            for task, run, done in self._dev_logits(spec, path):
                pairs = {query: mixture(run[query], done.logits[query], depth, scale) for query in task.queries}
                tasks.append((task.qrels, pairs))
            return choose_weight(tasks, harmless=True)

        kept = max(map(self.settings.kept, self.dev_tasks))
        of_stage = [stage.fingerprint, self.settings.fusion if stage.fuses else None, stage.weight, kept]
        key = ["smallest within an error", *of_stage, self.reranker(path)[1], depth, scale]
        share = remembered([*key, *map(task_fingerprint, self.dev_tasks)], choose)
        what = f"{path} over {spec} at depth {depth}"
        self._say_chosen("interpolate", share, what)
        if share == 0:
            print(f"note: --interpolate auto is 0: {what} gains less than one standard error on dev", file=sys.stderr)
        return share

    @functools.cache  # noqa: B019
    def _dev_logits(self, spec: str, path: str) -> list[tuple[Task, dict, Reranked]]:
        found = []
        for task in self.dev_tasks:
            runs = self.stage(spec)(task.corpus).search(list(task.queries.values()), self.settings.kept(task))
            run = dict(zip(task.queries, runs, strict=True))
            progress = f"{path} on {task.name}/{task.split}" if self.settings.progress else None
            model, s = self.reranker(path)[0], self.settings
            found.append((task, run, rerank(model, task, run, s.depths, progress, s.bf16, s.passage_tokens)))
        return found


def _size(model: torch.nn.Module | None) -> int:
    """How many parameters a model has; BM25 and no reranker have none."""
    return sum(weights.numel() for weights in model.parameters()) if model else 0


def sampled(task: Task, queries: int) -> Task:
    """A task with so many of its queries, chosen by a hash of their ids, so that they are the same each time."""
    order = sorted(task.queries, key=lambda query: hashlib.sha256(query.encode()).hexdigest())[:queries]
    kept = [query for query in task.queries if query in set(order)]
    parts = [{query: part[query] for query in kept} for part in (task.queries, task.qrels)]
    return replace(task, queries=parts[0], qrels=parts[1])
