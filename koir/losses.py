"""Pure functions from embeddings to one differentiable scalar; they know no encoder, trainer or process."""

import torch

TILE_BYTES = 64 * 2**20


def right_answers(known: torch.Tensor, document_hashes: torch.Tensor) -> torch.Tensor:
    """Which columns hold a right answer of which query, and so can never be its negative.

    known: [B, P] hashes of every text that answers query i (zero pads). document_hashes: [N]. Returns [B, N] bool.
    """
    answers = torch.zeros(len(known), len(document_hashes), dtype=torch.bool, device=known.device)  # [B, N]
    for column in known.unbind(1):  # P is small; [B, P, N] would not be
        answers |= column[:, None] == document_hashes[None, :]  # [B, N]
    return answers


def info_nce(
    queries: torch.Tensor,
    documents: torch.Tensor,
    target: torch.Tensor,
    temperature: float,
    known: torch.Tensor | None = None,
    document_hashes: torch.Tensor | None = None,
    normalizer: float | None = None,
    tile_bytes: int = TILE_BYTES,
) -> torch.Tensor:
    """InfoNCE over all documents of the batch (van den Oord et al. 2018, arXiv:1807.03748).

    s = queries @ documents.T / temperature
    loss = 1/normalizer * sum_i -log( exp(s[i, target[i]]) / sum_j exp(s[i, j]) )

    queries: [B, D] unit vectors. documents: [N, D] unit vectors: positives and hard negatives of the whole batch.
    target: [B] the column of each query's document. known [B, P] and document_hashes [N]: a column other than the
    target that `right_answers` finds is left out of that row's sum. normalizer: what the sum is divided by, default B.

    Loss and gradients are computed together, strip by strip of rows, so that the [B, N] scores never exist at once:
    a strip takes about three times `tile_bytes`. Scores are at least float32 whatever comes in: at a temperature of
    0.01 half precision has no digits left.
    """
    if (known is None) != (document_hashes is None):
        raise ValueError("known and document_hashes go together")
    normalizer = len(queries) if normalizer is None else normalizer
    return _InfoNCE.apply(queries, documents, target, temperature, known, document_hashes, normalizer, tile_bytes)


class _InfoNCE(torch.autograd.Function):
    """The forward pass already holds the softmax of a strip, so it takes the gradients there and then."""

    @staticmethod
    def forward(ctx, queries, documents, target, temperature, known, document_hashes, normalizer, tile_bytes):
        precision = torch.promote_types(queries.dtype, torch.float32)
        q, d = queries.detach().to(precision), documents.detach().to(precision)  # [B, D], [N, D]
        strip = max(1, tile_bytes // (len(d) * q.element_size()))
        total = q.new_zeros(())
        to_queries, to_documents = torch.empty_like(q), torch.zeros_like(d)
        for rows in torch.arange(len(q), device=q.device).split(strip):
            own = target[rows, None]  # [b, 1]
            scores = (q[rows] @ d.T).div_(temperature)  # [b, N]
            if known is not None:
                mask = right_answers(known[rows], document_hashes).scatter_(1, own, False)  # [b, N]
                scores.masked_fill_(mask, float("-inf"))  # scaled first, masked second: no NaN gradients
            normalised = torch.logsumexp(scores, dim=1, keepdim=True)  # [b, 1]
            total += (normalised - scores.gather(1, own)).sum()
            share = scores.sub_(normalised).exp_()  # [b, N] softmax, in place
            share.scatter_add_(1, own, share.new_full(own.shape, -1.0))  # [b, N] d loss / d scores
            share /= temperature * normalizer
            to_queries[rows] = share @ d  # [b, D]
            to_documents.addmm_(share.T, q[rows])  # [N, D]
        ctx.save_for_backward(to_queries.to(queries.dtype), to_documents.to(documents.dtype))
        return total / normalizer

    @staticmethod
    def backward(ctx, gradient):
        found = ctx.saved_tensors
        if gradient != 1:  # the usual 1 costs no second copy
            found = [part * gradient for part in found]
        return *found, None, None, None, None, None, None
