"""What reranker/train.py needs around its step: groups, the loss over processes, scores of reranked candidates."""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from koir.arguments import TrainingArguments
from koir.batches import require_scores
from koir.evaluation.metrics import mean_ndcg
from koir.evaluation.reranking import final_run, rerank
from koir.evaluation.tasks import Task
from koir.gather import from_first, rank, sum_over_processes, world_size
from koir.groups import Curriculum, Groups, PairCollator, mine_groups
from koir.losses import kl_divergence, picked
from koir.ranking_losses import POINTWISE, cross_entropy
from koir.reranker import Reranker
from koir.reranker_arguments import TAUGHT
from koir.retrieval.stages import first_stage
from koir.runs.interruptions import broken_loss
from koir.runs.trainer import RunTrainer
from koir.triplets import Triplets


class RerankerTrainer(RunTrainer):
    """The Trainer around a cross-encoder; reranker/train.py adds the step."""

    COUNTED = (*RunTrainer.COUNTED, "queries", "negatives", "filled")

    def __init__(self, reranker: Reranker, args: TrainingArguments, triplets: Triplets, groups: dict):
        self.loss_arguments, self.step_arguments = groups["loss"], groups.get("step")
        self.data_arguments, self.evaluation = groups["data"], groups["evaluation"]
        taught = self.loss_arguments.loss in TAUGHT
        if taught:
            require_scores(triplets, f"--loss {self.loss_arguments.loss}")
        with _whole(args):
            mined = self._mined(triplets) if self.data_arguments.negatives_from != "rows" else None
        rows = Groups(triplets.pairs, self.data_arguments.group_size, args.seed, mined, fill=not taught)
        collator = PairCollator(
            reranker, groups["chunks"].chunk_tokens, taught, self.data_arguments.train_max_seq_length
        )
        super().__init__(reranker, args, rows, collator, groups["dev_tasks"])
        self.queries = self.negatives = self.filled = 0
        self._candidates: dict[str, dict] = {}  # of each dev task, found once
        self._first_stage: dict[str, float] = {}  # its own dev scores

    def _mined(self, triplets: Triplets) -> list[list[str]]:
        """Negatives out of a first stage's candidates, and one line on what was found."""
        data = self.data_arguments
        stage = first_stage(data.negatives_from, flag="--negatives_from")
        mined, statistics = mine_groups(triplets.pairs, stage, data.negatives_depth, data.max_ratio, data.group_size)
        self.mining = dict(statistics.counts)
        if rank():
            return mined
        none, lacking = sum(not texts for texts in mined), sum(max(0, data.group_size - 1 - len(t)) for t in mined)
        if own := sum(len(pair) for pair in triplets.pairs["hard_negatives"]):
            print(f"note:    the rows' own {own:,} hard negatives are not used; --negatives_from rows takes them",
                  file=sys.stderr)  # fmt: skip
        print(f"mined:   {sum(map(len, mined)):,} negatives from {data.negatives_from}; {none:,} rows without one; "
              f"{lacking:,} places in groups of {data.group_size} are for random ones", file=sys.stderr)  # fmt: skip
        return mined

    def judge(self, scores: torch.Tensor, batch: dict) -> torch.Tensor:
        """A loss over groups: scores [n or more] in the chunks' order -> W * (sum over local queries) / B.

        Its mean over the W processes is the mean over all B queries, and so with its gradients.
        """
        batch["scores"] = [scores.detach()]
        grouped = picked(scores[:, None], batch["column"])[..., 0]  # [b, M]
        there = batch["there"]  # [b, M]
        if self.loss_arguments.loss == "cross_entropy":
            total = cross_entropy(grouped, there)
        else:
            teacher = batch["teacher"].to(grouped.dtype) / self.loss_arguments.teacher_temperature
            total = kl_divergence(grouped, teacher, there)
        return total / self.normalizer(batch)

    def judge_chunk(self, scores: torch.Tensor, batch: dict, start: int) -> torch.Tensor:
        """A pointwise loss's part of one chunk, whose scores [m] begin at `start` in the chunks' order."""
        target, weight = (batch[name][start : start + len(scores)] for name in ("target", "weight"))
        batch.setdefault("scores", []).append(scores.detach())
        scores = scores[: len(target)]  # a repeat that keeps ranks in step has no target
        return POINTWISE[self.loss_arguments.loss](scores, target, weight) / self.normalizer(batch)

    def normalizer(self, batch: dict) -> float:
        """B / W: all processes' queries in this batch, shared among W."""
        if "queries" not in batch:
            (batch["queries"],) = sum_over_processes(len(batch["column"]))
        return batch["queries"] / world_size()

    def account(self, loss: torch.Tensor, batch: dict) -> None:
        """Count a batch; raise RunError, with step, chunk and pair, where a score or the loss is not finite."""
        if not torch.isfinite(loss):
            step, tokenizer = self.state.global_step + 1, self.accelerator.unwrap_model(self.model).tokenizer
            raise broken_loss(step, loss.item(), *self._broken(batch), batch["chunks"], tokenizer)
        self.steps += 1
        self.tokens += batch["tokens"]
        self.queries += len(batch["column"])
        self.negatives += batch["negatives"]
        self.filled += batch["filled"]

    def _broken(self, batch: dict) -> tuple[list[int], str]:
        """Which pairs, in the chunks' order, broke the loss, and what they are."""
        scores = torch.cat(batch.pop("scores"))  # [n or more]
        if broken := (~torch.isfinite(scores)).nonzero().flatten().tolist():
            return broken, "scores that are not finite"
        if self.loss_arguments.loss in POINTWISE:
            parts = [self.judge_chunk(scores[n : n + 1], batch, n) for n in range(len(batch["target"]))]
            return [n for n, part in enumerate(parts) if not torch.isfinite(part)], "pairs"
        rows = range(len(batch["column"]))
        groups = [batch | {k: batch[k][n : n + 1] for k in ("column", "there", "teacher")} for n in rows]
        parts = [self.judge(scores, group) for group in groups]
        return [int(batch["column"][n, 0]) for n in rows if not torch.isfinite(parts[n])], "groups"

    def facts(self) -> dict:
        """What run.json says of the training itself, on all processes."""
        queries, negatives, filled = sum_over_processes(self.queries, self.negatives, self.filled)
        facts = {"negatives_per_query": negatives / max(queries, 1), "random_negatives": filled, "negatives": negatives}
        return facts | {"mining": getattr(self, "mining", None)} | super().facts()

    def dev_scores(self) -> dict[str, float]:
        """nDCG@10 of the dev tasks' candidates, reranked by the model as it is now, in the precision of training."""
        reranker, depth, scores = self.accelerator.unwrap_model(self.model), self.evaluation.eval_depth, {}
        for task in self.dev_tasks:
            metric = f"{task.name}/ndcg_at_10"
            if task.name not in self._candidates:
                with _whole(self.args):
                    found = candidates(self.evaluation.first_stage, task, depth)
                self._candidates[task.name], self._first_stage[metric] = found, mean_ndcg(task.qrels, found)
            run = reranked(_Shared(reranker, self.share), task, self._candidates[task.name], depth, bf16=self.args.bf16)
            scores[metric] = mean_ndcg(task.qrels, run)
        return scores

    def rivals(self) -> dict[str, dict[str, float]]:
        """Base and first stage."""
        return super().rivals() | {"its own first stage": self._first_stage}

    def _get_train_sampler(self, train_dataset: object = None) -> Curriculum:
        args = self.args
        step = args.train_batch_size * world_size() * args.gradient_accumulation_steps
        rows, seed = len(self.train_dataset), args.seed if args.data_seed is None else args.data_seed
        until, epoch = self.data_arguments.random_negatives_until, lambda: int(self.state.epoch or 0)
        return Curriculum(rows, seed, epoch, until, lambda: self.state.max_steps / math.ceil(rows / step) * rows)


@contextlib.contextmanager
def _whole(args: TrainingArguments) -> Iterator[None]:
    """A context in which models are loaded whole, as a first stage's has to be; ZeRO 3 would split them."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if args.deepspeed:
            set_hf_deepspeed_config(args.hf_deepspeed_config)


class _Shared:
    """A reranker whose pairs several processes score together. share: as `ChunkedSteps` has it."""

    def __init__(self, reranker: Reranker, share: Callable):
        self.reranker, self.share = reranker, share

    def score(self, pairs: Sequence[tuple[str, str]], **how) -> np.ndarray:
        """As `Reranker.score`."""
        return self.share(pairs, functools.partial(self.reranker.score, **how))


def candidates(spec: str, task: Task, depth: int) -> dict[str, dict[str, float]]:
    """A first stage's candidates on a task: query id -> {document id: score}; no right answer is slipped in."""
    index = first_stage(spec, progress=False)(task.corpus)  # the first process's
    found = from_first(lambda: index.search(list(task.queries.values()), depth))
    return dict(zip(task.queries, found, strict=True))


def reranked(
    reranker: Reranker, task: Task, run: dict, depth: int, progress: str | None = None, bf16: bool = False
) -> dict:
    """The final run: each query's `depth` best candidates by the reranker's raw logits. bf16: as for `score`."""
    logits = rerank(reranker, task, run, [depth], progress, bf16).logits
    return {query: final_run(run[query], logits[query], depth, None, "") for query in task.queries}
