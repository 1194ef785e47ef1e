"""Pure functions from embeddings to one differentiable scalar; they know no encoder, trainer or process."""

import torch


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
    answers: torch.Tensor | None = None,
    normalizer: float | None = None,
) -> torch.Tensor:
    """InfoNCE over all documents of the batch (van den Oord et al. 2018, arXiv:1807.03748).

    s = queries @ documents.T / temperature
    loss = 1/normalizer * sum_i -log( exp(s[i, target[i]]) / sum_j exp(s[i, j]) )

    queries: [B, D] unit vectors. documents: [N, D] unit vectors: positives and hard negatives of the whole batch.
    target: [B] the column of each query's document. answers: [B, N] bool; a True column other than the target is
    left out of that row's sum (it answers the query too). normalizer: what the sum is divided by, default B.

    Scores are at least float32 whatever comes in: at a temperature of 0.01 half precision has no digits left.
    """
    precision = torch.promote_types(queries.dtype, torch.float32)
    scores = queries.to(precision) @ documents.to(precision).T / temperature  # [B, N]
    own = scores.gather(1, target[:, None]).squeeze(1)  # [B]
    if answers is not None:
        mask = answers.scatter(1, target[:, None], False)  # [B, N]
        scores = scores.masked_fill(mask, float("-inf"))  # scaled first, masked second: no NaN gradients
    loss = torch.logsumexp(scores, dim=1) - own  # [B]
    return loss.sum() / (len(queries) if normalizer is None else normalizer)
