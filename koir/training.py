"""What v1 and v1.1 share around the step: batches of distinct texts, the loss over processes, dev scores."""

from collections import Counter
from collections.abc import Sequence

import torch

from koir.arguments import TrainingArguments
from koir.encoder import Encoder
from koir.evaluation import pipeline
from koir.gather import gather_rows, gather_sizes, rank, world_size
from koir.losses import info_nce
from koir.retrieval import stages
from koir.tokens import chunked, tokenise
from koir.trainer import RunTrainer
from koir.triplets import Triplets, text_hash


class Collator:
    """Rows of one process's batch -> chunks of its distinct texts, and where query and document columns find them.

    chunks: padded inputs of the U distinct texts, longest first; inverse [U] undoes the sorting.
    query [b], document [n], target [b]: positions in U of queries and columns; target is each query's own column.
    query_hash [b], document_hash [n], known [b, P]: text hashes, `known` the right answers of each row (0 pads).
    """

    def __init__(self, encoder: Encoder, chunk_tokens: int, max_hard_negatives: int | None = None):
        self.encoder, self.chunk_tokens, self.max_hard_negatives = encoder, chunk_tokens, max_hard_negatives

    def __call__(self, rows: Sequence[dict]) -> dict:
        """b rows of `triplets.SCHEMA` to one batch."""
        position: dict[str, int] = {}

        def place(kind: str, text: str) -> int:
            return position.setdefault(self.encoder.prompts[kind] + text, len(position))

        negatives = [text for row in rows for text in row["hard_negatives"][: self.max_hard_negatives]]
        documents = [row["document"] for row in rows] + negatives  # own document first, so target is 0..b-1
        batch = {
            "query": [place("query", row["query"]) for row in rows],
            "document": [place("document", text) for text in documents],
            "target": list(range(len(rows))),
            "query_hash": [text_hash(row["query"]) for row in rows],
            "document_hash": [text_hash(text) for text in documents],
            "known": _padded([row["right_answers"] for row in rows]),
        }
        sequences = tokenise(self.encoder.tokenizer, list(position), self.encoder.max_seq_length)
        chunks, inverse = chunked(sequences, self.encoder.tokenizer.pad_token_id, self.chunk_tokens)
        batch = {name: torch.tensor(value) for name, value in batch.items()}
        return batch | {"chunks": chunks, "inverse": inverse, "tokens": sum(map(len, sequences))}


def _padded(lists: Sequence[Sequence[int]]) -> list[list[int]]:
    longest = max(map(len, lists))
    return [list(items) + [0] * (longest - len(items)) for items in lists]


def merged_answers(query_hash: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The right answers of all rows that ask the same query, given to each of them.

    query_hash: [B]. known: [B, P] hashes, 0 pads. Returns [B, P'] with P' as large as the largest union.
    """
    answers: dict[int, set[int]] = {}
    rows = list(zip(query_hash.tolist(), known.tolist(), strict=True))
    for query, hashes in rows:
        answers.setdefault(query, set()).update(hashes)
    if len(answers) == len(rows):
        return known
    return torch.tensor(_padded([sorted(answers[query]) for query, _ in rows]), device=known.device)


def mean_negatives(known: torch.Tensor, document_hashes: torch.Tensor) -> float:
    """How many of the N columns a query is scored against as negatives, on average over the b rows.

    known: [b, P] hashes of right answers, 0 pads. document_hashes: [N].
    """
    columns = Counter(document_hashes.tolist())
    right = sum(columns[answer] for answers in known.tolist() for answer in set(answers))
    return len(document_hashes) - right / len(known)


class EmbeddingTrainer(RunTrainer):
    """The Trainer around a bi-encoder; v1 and v1.1 add their step and nothing else."""

    def __init__(self, encoder: Encoder, args: TrainingArguments, triplets: Triplets, groups: dict):
        self.loss_arguments, self.step_arguments = groups["loss"], groups.get("step")
        collator = Collator(encoder, groups["chunks"].chunk_tokens, groups["data"].max_hard_negatives)
        super().__init__(encoder, args, triplets, collator, groups["dev_tasks"])
        self.negatives = 0

    def contrast(self, embeddings: torch.Tensor, batch: dict) -> torch.Tensor:
        """The InfoNCE of this process's queries against every document of the global batch.

        embeddings: [U, D] of this process's distinct texts, in the order of `batch["chunks"]`. The value is
        W * (sum over local queries) / B, so that its mean over the W processes is the mean over all B queries, and
        the mean of its gradients, which is what data-parallel reducers take, is the gradient of that mean.
        """
        embeddings = embeddings[batch["inverse"]]  # [U, D]; repeats that fill up chunks, at the end, are never read
        sizes = gather_sizes(*batch["known"].shape, len(batch["document"]), device=embeddings.device)
        queries, answers, columns = (list(size) for size in zip(*sizes, strict=True))
        known = torch.nn.functional.pad(batch["known"], (0, max(answers) - batch["known"].shape[1]))  # [b, P]
        known = merged_answers(gather_rows(batch["query_hash"], queries), gather_rows(known, queries))  # [B, P]
        first_query, first_column = sum(queries[: rank()]), sum(columns[: rank()])
        known = known[first_query : first_query + queries[rank()]]  # [b, P]
        hashes = gather_rows(batch["document_hash"], columns)  # [N]
        documents = gather_rows(embeddings[batch["document"]], columns)  # [N, D]
        self.negatives += mean_negatives(known, hashes)
        self.steps += 1
        self.tokens += batch["tokens"]
        return info_nce(
            embeddings[batch["query"]],
            documents,
            batch["target"] + first_column,
            self.loss_arguments.temperature,
            known,
            hashes,
            normalizer=sum(queries) / world_size(),
        )

    def facts(self) -> dict:
        """What run.json says of the training itself; negatives_per_query leaves right answers out."""
        return {"negatives_per_query": self.negatives / max(self.steps, 1)} | super().facts()

    def dev_scores(self) -> dict[str, float]:
        """nDCG@10 of the dev tasks, by exact search with the encoder as it is now."""
        encoder = self.accelerator.unwrap_model(self.model)
        scores = {}
        for task in self.dev_tasks:
            done = pipeline.evaluate_first_stage(stages.in_memory(encoder), task, "dense")
            (row,) = done.content["scores"][task.split]
            scores[f"{task.name}/ndcg_at_10"] = row["ndcg_at_10"]
        return scores
