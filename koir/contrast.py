"""The loss of this process's rows against the texts of all processes, in a fixed number of exchanges."""

import contextlib
from typing import NamedTuple

import torch

from koir.arguments import LossArguments
from koir.batches import padded
from koir.encoder import Encoder
from koir.gather import gather_rows, gather_sizes, rank, world_size
from koir.losses import Guide, Teacher, contrastive_loss, picked


class Sides(NamedTuple):
    """Vectors of this process's n columns and b queries, and of all N columns; of all B queries where they compete."""

    documents: torch.Tensor
    queries: torch.Tensor
    all_documents: torch.Tensor
    all_queries: torch.Tensor | None


class NotFinite(ArithmeticError):
    """A loss that is not finite. loss: its value. rows: of this process's queries, those that make it so, if any."""

    def __init__(self, loss: float, rows: list[int]):
        super().__init__(loss, rows)
        self.loss, self.rows = loss, rows


class Contrast:
    """The loss that the flags describe, as a function of one process's embeddings and batch.

    A step's exchanges, whatever the chunks: one of sizes, one of hashes, one of embeddings, one of the guide's, and
    one back with the embeddings' gradients.
    """

    def __init__(self, loss: LossArguments, guide: Encoder | None = None, autocast=contextlib.nullcontext):
        """guide: judges false negatives, frozen; without it `loss` may still name the model itself.

        autocast: makes the context in which the guide runs.
        """
        self.loss, self.guide, self.autocast = loss, guide, autocast

    def __call__(self, embeddings: torch.Tensor, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """W * (sum over the b local queries) / B, and the mean number of negatives they have.

        embeddings: [U, D] of this process's distinct texts, in the order of `batch["chunks"]`. The mean of the values
        over the W processes is the mean over all B queries, and the mean of its gradients, which is what data-parallel
        reducers take, is the gradient of that mean. Raises NotFinite.
        """
        sizes = gather_sizes(*batch["known"].shape, len(batch["document"]))
        queries, answers, columns = (list(size) for size in zip(*sizes, strict=True))
        first_query, first_column = sum(queries[: rank()]), sum(columns[: rank()])
        hashes, known = _identities(batch, queries, max(answers), columns)  # [N], [B, P]
        sides = self.exchanged(embeddings, batch, columns, queries)
        seen = self.seen_by_guide(sides, batch, columns, queries)
        own = batch["target"]  # [b]
        shared = {
            "temperature": self.loss.temperature,
            "normalizer": sum(queries) / world_size(),
            "dimensions": self.loss.matryoshka_dimensions,
            "weights": self.loss.matryoshka_weights,
        }
        here = slice(first_query, first_query + len(own))
        guide, teacher = self.judge(seen and (seen.queries, seen.all_documents)), self.teacher(batch, first_column)
        parts = [{"queries": sides.queries, "documents": sides.all_documents, "target": own + first_column,
                  "known": known[here], "document_hashes": hashes, "guide": guide, "teacher": teacher}]  # fmt: skip
        loss, negatives = contrastive_loss(**parts[0], **shared)
        if self.loss.symmetric_weight:
            guide = self.judge(seen and (seen.documents[own], seen.all_queries))
            target = torch.arange(here.start, here.stop, device=own.device)
            parts.append({"queries": sides.documents[own], "documents": sides.all_queries, "target": target,
                          "guide": guide, "known": batch["document_hash"][own, None],
                          "document_hashes": known})  # fmt: skip
            loss = loss + self.loss.symmetric_weight * contrastive_loss(**parts[1], **shared)[0]
        if not torch.isfinite(loss):
            raise NotFinite(loss.item(), [n for n in range(len(own)) if not all(_finite(n, p, shared) for p in parts)])
        return loss, negatives / len(own)

    def exchanged(self, vectors: torch.Tensor, plan: dict, columns: list[int], queries: list[int]) -> Sides:
        """Vectors [U, D] of a plan's distinct texts, as columns and queries, here and of all processes."""
        vectors = picked(vectors, plan["inverse"])  # [U, D]; repeats that fill up chunks, at the end, are never read
        own = picked(vectors, plan["document"]), picked(vectors, plan["query"])  # [n, D], [b, D]
        if not self.loss.symmetric_weight:
            return Sides(*own, *gather_rows(own[:1], [columns]), None)
        return Sides(*own, *gather_rows(own, [columns, queries]))

    def seen_by_guide(self, sides: Sides, batch: dict, columns: list[int], queries: list[int]) -> Sides | None:
        """The same texts as the guide embeds them, or as the model itself does."""
        if self.loss.guide_model_name_or_path is None:
            return None
        if self.guide is None:
            return Sides(*[side if side is None else side.detach() for side in sides])
        with torch.no_grad(), self.autocast():
            vectors = torch.cat([self.guide.embed(chunk) for chunk in batch["guide"]["chunks"]])  # [U, G]
        return self.exchanged(vectors, batch["guide"], columns, queries)

    def judge(self, sides: tuple[torch.Tensor, torch.Tensor] | None) -> Guide | None:
        """Who judges rows against columns, if anybody does."""
        return sides and Guide(*sides, self.loss.false_negative_margin, self.loss.margin_type == "relative")

    def teacher(self, batch: dict, first_column: int) -> Teacher | None:
        """The teacher's scores of the batch's rows, with columns counted over all processes."""
        if self.loss.distillation is None:
            return None
        columns = batch["teacher_columns"]  # [b, M]
        columns = torch.where(columns < 0, columns, columns + first_column)  # [b, M]
        loss, scores = self.loss, batch["teacher_scores"]
        return Teacher(columns, scores, loss.distillation, loss.distillation_weight, loss.teacher_temperature)


def _finite(row: int, part: dict, shared: dict) -> bool:
    """Whether one row of a `contrastive_loss` has a finite loss. part: the arguments by name that differ by row."""
    here, guide, teacher = slice(row, row + 1), part["guide"], part.get("teacher")
    alone = part | {name: part[name][here] for name in ("queries", "target", "known")}
    alone["guide"] = guide and guide._replace(rows=guide.rows[here])
    alone["teacher"] = teacher and teacher._replace(columns=teacher.columns[here], scores=teacher.scores[here])
    with torch.no_grad():
        return bool(torch.isfinite(contrastive_loss(**alone, **shared)[0]))


def _identities(batch: dict, queries: list[int], answers: int, columns: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hashes of all N columns, and the right answers [B, P] of all B queries, from one exchange."""
    known = torch.nn.functional.pad(batch["known"], (0, answers - batch["known"].shape[1]))  # [b, P]
    groups = [batch["query_hash"], batch["document_hash"], known.flatten()]
    counts = [queries, columns, [count * answers for count in queries]]
    asked, hashes, known = gather_rows(groups, counts)  # [B], [N], [B * P]
    return hashes, merged_answers(asked, among(hashes, known.view(-1, answers)))


def among(hashes: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Of known [B, P], 0 pads, what is among hashes [N]: [B, P'] with P' as many as any row has of them.

    The others can be nobody's negative here, and a query that thousands of rows ask has thousands of answers.
    """
    there = torch.isin(known, hashes) & (known != 0)  # [B, P]
    order = there.int().argsort(1, descending=True)[:, : int(there.sum(1).max())]  # [B, P']
    return torch.where(there, known, 0).gather(1, order)


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
    return padded([sorted(answers[query]) for query, _ in rows]).to(known)
