"""Pure functions from embeddings to one differentiable scalar; they know no encoder, trainer or process."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

TILE_BYTES = 64 * 2**20
TILE_ROWS = 512  # more gain a tenth of the loss at most, and the peak would grow with the batch


class Guide(NamedTuple):
    """Whose likeness of rows and columns says which negatives are false (GISTEmbed, arXiv:2402.16829).

    rows: [B, G], columns: [N, G] unit vectors that get no gradient. A column is left out of a row's sum when it is
    likelier than the row's own target less a margin: `margin` itself, or, if `relative`, that share of the target's.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    margin: float = 0.0
    relative: bool = False


class Teacher(NamedTuple):
    """A teacher's scores of each row's own candidates, which the row's scores are to resemble.

    columns: [B, M] where the candidates stand, the target first; -1 pads. scores: [B, M]. term: `kl` or `margin_mse`.
    """

    columns: torch.Tensor
    scores: torch.Tensor
    term: str
    weight: float = 1.0
    temperature: float = 1.0


def picked(vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """vectors[rows]: [U, D] and rows of any shape [...] to [..., D].

    A row picked several times gets the sum of its gradients, the same bits each time: indexing on a CPU adds them up in
    the order in which threads come by.
    """
    return torch.nn.functional.embedding(rows, vectors) if vectors.device.type == "cpu" else vectors[rows]


def right_answers(known: torch.Tensor, hashes: torch.Tensor) -> torch.Tensor:
    """Which columns hold a right answer of which query, and so can never be its negative.

    known: [B, P] hashes of every text that answers query i (zero pads). hashes: [N], or [N, R] where a column stands
    for several texts (zero pads, on one side only). Returns [B, N] bool.
    """
    answers = torch.zeros(len(known), len(hashes), dtype=torch.bool, device=known.device)  # [B, N]
    for column in known.unbind(1):  # P and R are small; [B, P, N] would not be
        for other in hashes.reshape(len(hashes), -1).unbind(1):
            answers |= column[:, None] == other[None, :]  # [B, N]
    return answers


def kl_divergence(scores: torch.Tensor, teacher: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Sum over rows of KL(softmax(teacher) || softmax(scores)), each over the M candidates that are there, all [B, M].

    Ranking distillation as in RocketQAv2 (arXiv:2110.07367) and BGE-M3 (arXiv:2402.03216).
    """
    nowhere = torch.finfo(scores.dtype).min / 4  # finite: infinity less infinity is no number
    ours = scores.masked_fill(~there, nowhere).log_softmax(1)  # [B, M]
    theirs = teacher.masked_fill(~there, nowhere).log_softmax(1)  # [B, M]
    return (theirs.exp() * (theirs - ours)).sum()


def margin_mse(scores: torch.Tensor, teacher: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the mean squared difference of margins, first candidate less each other (arXiv:2010.02666).

    All are [B, M]; a row with no other candidate counts 0.
    """
    others = there[:, 1:]  # [B, M - 1]
    difference = (scores[:, :1] - scores[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])  # [B, M - 1]
    return (difference.masked_fill(~others, 0).square().sum(1) / others.sum(1).clamp(min=1)).sum()


TERMS = {"kl": kl_divergence, "margin_mse": margin_mse}


def truncated(embeddings: torch.Tensor, dimensions: int) -> torch.Tensor:
    """The first so many of D dimensions, as unit vectors again: [n, D] to [n, dimensions] (arXiv:2205.13147)."""
    if dimensions == embeddings.shape[1]:
        return embeddings
    part = embeddings[:, :dimensions].to(torch.promote_types(embeddings.dtype, torch.float32))
    return torch.nn.functional.normalize(part, dim=1)


def info_nce(*arguments, **settings) -> torch.Tensor:
    """The loss of `contrastive_loss`, alone."""
    return contrastive_loss(*arguments, **settings)[0]


def contrastive_loss(
    queries: torch.Tensor,
    documents: torch.Tensor,
    target: torch.Tensor,
    temperature: float,
    known: torch.Tensor | None = None,
    document_hashes: torch.Tensor | None = None,
    normalizer: float | None = None,
    tile_bytes: int = TILE_BYTES,
    guide: Guide | None = None,
    teacher: Teacher | None = None,
    dimensions: Sequence[int] = (),
    weights: Sequence[float] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE over all documents of the batch (van den Oord et al. 2018, arXiv:1807.03748), and what it counted.

    s = queries @ documents.T / temperature
    loss = 1/normalizer * sum_i ( -log( exp(s[i, target[i]]) / sum_j exp(s[i, j]) ) + teacher.weight * term_i )

    queries: [B, D] unit vectors. documents: [N, D] unit vectors: positives and hard negatives of the whole batch.
    target: [B] the column of each query's document. known [B, P] and document_hashes [N]: a column other than the
    target that `right_answers` finds is left out of that row's sum, and so is one that the guide finds too like the
    query. teacher: adds `kl_divergence` or `margin_mse` of the row's own candidates, masked or not. normalizer: what
    the sum is divided by, default B. dimensions, weights: the mean, weighted (default alike), of the losses at so
    many leading dimensions. The other direction is the same call with the roles of queries and documents exchanged.

    Loss and gradients are computed together, strip by strip of rows, so that the [B, N] scores never exist at once:
    a strip has at most TILE_ROWS rows and takes about three times `tile_bytes`. Scores are at least float32 whatever
    comes in: at a temperature of 0.01 half precision has no digits left. Returns the scalar, and the number of
    negatives in all rows' sums. Raises ValueError for one of known and document_hashes without the other.
    """
    if (known is None) != (document_hashes is None):
        raise ValueError("known and document_hashes go together")
    sizes = dimensions or [queries.shape[1]]
    weights = weights or [1.0] * len(sizes)
    views = [view for size in sizes for view in (truncated(queries, size), truncated(documents, size))]
    normalizer = len(queries) if normalizer is None else normalizer
    strips = _Strips(target, temperature, known, document_hashes, guide, teacher, normalizer, tile_bytes)
    return _Contrast.apply(strips, [weight / sum(weights) for weight in weights], *views)


def strip_rows(row_bytes: int, tile_bytes: int = TILE_BYTES) -> int:
    """How many rows of scores, each of so many bytes, are computed at once."""
    return min(max(1, tile_bytes // row_bytes), TILE_ROWS)


class _Strips(NamedTuple):
    """What a strip of rows is judged by; rows: [b] positions of the strip's rows."""

    target: torch.Tensor
    temperature: float
    known: torch.Tensor | None
    hashes: torch.Tensor | None
    guide: Guide | None
    teacher: Teacher | None
    normalizer: float
    tile_bytes: int

    def left_out(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Which columns are no negatives of which row: [b, N] bool, or None where nothing says so."""
        own, mask = self.target[rows, None], None  # [b, 1]
        if self.known is not None:
            mask = right_answers(self.known[rows], self.hashes)  # [b, N]
        if self.guide is not None:
            likeness = self.guide.rows[rows] @ self.guide.columns.T  # [b, N]
            bar = likeness.gather(1, own)  # [b, 1]
            bar = bar - self.guide.margin * (bar.abs() if self.guide.relative else 1)
            mask = likeness > bar if mask is None else mask.logical_or_(likeness > bar)
        return mask if mask is None else mask.scatter_(1, own, False)

    def distil(self, scores: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The teacher's term of [b, N] scores, its gradient [b, M], and the columns [b, M] this belongs to."""
        teacher, there = self.teacher, self.teacher.columns[rows] >= 0  # [b, M]
        columns = self.teacher.columns[rows].clamp(min=0)  # [b, M]
        with torch.enable_grad():
            ours = scores.gather(1, columns).requires_grad_()  # [b, M]
            wanted = teacher.scores[rows].to(ours.dtype) / teacher.temperature  # [b, M]
            value = teacher.weight * TERMS[teacher.term](ours, wanted, there)
            (gradient,) = torch.autograd.grad(value, ours)  # [b, M], 0 where nothing is there
        return value.detach(), gradient, columns

    def loss_and_share(
        self, scores: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of [b, N] scores, and its gradient with respect to them, in their place."""
        own = self.target[rows, None]  # [b, 1]
        distilled = self.distil(scores, rows) if self.teacher is not None else None
        if mask is not None:
            scores.masked_fill_(mask, float("-inf"))  # scaled first, masked second: no NaN gradients
        normalised = torch.logsumexp(scores, dim=1, keepdim=True)  # [b, 1]
        loss = (normalised - scores.gather(1, own)).sum()
        share = scores.sub_(normalised).exp_()  # [b, N] softmax, in place
        share.scatter_add_(1, own, share.new_full(own.shape, -1.0))  # [b, N] d loss / d scores
        if distilled is not None:
            loss = loss + distilled[0]
            share.scatter_add_(1, distilled[2], distilled[1])
        return loss, share


class _Contrast(torch.autograd.Function):
    """The forward pass already holds the softmax of a strip, so it takes the gradients there and then."""

    @staticmethod
    def forward(ctx, strips: _Strips, weights: list[float], *views: torch.Tensor):
        """views: queries [B, d] and documents [N, d] of each number of dimensions d, one after the other."""
        precision = torch.promote_types(views[0].dtype, torch.float32)
        sides = [view.detach().to(precision) for view in views]
        found = [torch.empty_like(side) if n % 2 == 0 else torch.zeros_like(side) for n, side in enumerate(sides)]
        (count, _), columns = sides[0].shape, len(sides[1])
        strip = strip_rows(columns * sides[0].element_size(), strips.tile_bytes)
        total, negatives = sides[0].new_zeros(()), torch.tensor(count * (columns - 1), device=sides[0].device)
        with torch.autocast(sides[0].device.type, enabled=False):
            for rows in torch.arange(count, device=sides[0].device).split(strip):
                mask = strips.left_out(rows)  # the same for every number of dimensions
                negatives -= 0 if mask is None else mask.sum()
                for n, weight in enumerate(weights):
                    q, d = sides[2 * n][rows], sides[2 * n + 1]  # [b, d], [N, d]
                    loss, share = strips.loss_and_share((q @ d.T).div_(strips.temperature), rows, mask)
                    total += weight * loss
                    share *= weight / (strips.temperature * strips.normalizer)
                    found[2 * n][rows] = share @ d  # [b, d]
                    found[2 * n + 1].addmm_(share.T, q)  # [N, d]
        ctx.save_for_backward(*[gradient.to(view.dtype) for gradient, view in zip(found, views, strict=True)])
        ctx.mark_non_differentiable(negatives)
        return total / strips.normalizer, negatives

    @staticmethod
    def backward(ctx, gradient, _):
        found = ctx.saved_tensors
        if gradient != 1:  # the usual 1 costs no second copy
            found = [part * gradient for part in found]
        return None, None, *found
