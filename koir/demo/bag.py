"""A bag of pieces: one vector a piece, learned by InfoNCE, and the same as a transformer that can go on learning.

A transformer from random weights needs hours to find out that equal words matter. A bag of pieces knows it from the
start, learns in a minute on one core, and fits the XLM-RoBERTa architecture exactly (`as_transformer`).
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
import torch
from torch.nn import functional
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from koir.bars import progress_bar
from koir.losses import info_nce
from koir.triplets import text_hash

SLACK = 2  # dimensions that take up what a light piece lacks in length
SCALE = 0.01  # of an element of a piece's vector in the transformer
ALONE = 0.3  # weight of one character beside its pairs


def counts(tokenizer, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    """How often each piece stands in each text's first 512 pieces: [len(texts), V], special tokens not counted."""
    found = tokenizer(list(texts), truncation=True, max_length=512, add_special_tokens=False)["input_ids"]
    rows = np.repeat(np.arange(len(found)), [len(ids) for ids in found])
    columns = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in found])
    ones = np.ones(len(columns), dtype=np.float32)
    matrix = scipy.sparse.csr_matrix((ones, (rows, columns)), shape=(len(found), len(tokenizer)))
    matrix.sum_duplicates()
    return matrix


def rarity(matrix: scipy.sparse.csr_matrix) -> np.ndarray:
    """Inverse document frequency of each column of counts: [columns]."""
    return np.log((matrix.shape[0] + 1) / (np.asarray((matrix > 0).sum(0)).ravel() + 0.5)).astype(np.float32)


def characters(tokenizer) -> scipy.sparse.csr_matrix:
    """Which characters, pairs of characters and whole words each piece is made of: [V, features].

    The mark of a word's beginning does not count, so that a word is the same with and without a word before it.
    """
    features: dict[str, int] = {}
    entries = []
    for piece, name in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        bare = name.replace("▁", "")
        parts = [(character, ALONE) for character in bare] + [(bare[i : i + 2], 1.0) for i in range(len(bare) - 1)]
        parts += [(bare, 1.0)] if len(bare) > 2 else []
        entries += [
            (piece, features.setdefault(part, len(features)), weight) for part, weight in parts or [(name, 1.0)]
        ]
    rows, columns, weights = zip(*entries, strict=True)
    shape = (len(tokenizer), len(features))
    return scipy.sparse.csr_matrix((np.array(weights, dtype=np.float32), (rows, columns)), shape=shape)


def first_vectors(tokenizer, texts: Sequence[str], dimensions: int, seed: int) -> torch.Tensor:
    """A vector for each piece, before anything is learned: [V, dimensions].

    The direction is a random projection of the piece's characters, each weighted by how rare it is in `texts`; the
    length is how rare the piece itself is, at most 1.
    """
    found, made_of = counts(tokenizer, texts), characters(tokenizer)
    weighted = made_of @ scipy.sparse.diags(rarity(found @ made_of))  # [V, features]
    random = np.random.default_rng(seed).standard_normal((made_of.shape[1], dimensions)).astype(np.float32)
    vectors = functional.normalize(torch.from_numpy(weighted @ random), dim=1)  # [V, dimensions]
    lengths = torch.from_numpy(rarity(found))
    return vectors * (lengths / lengths.max())[:, None]


def turned(vectors: torch.Tensor, tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """The same vectors [V, D] along the axes of their texts' embeddings, those that vary most first.

    Cosines stay as they are. Adam, which scales each dimension by itself, learns better along these axes, and leading
    dimensions say the most.
    """
    embeddings = embed(vectors, counts(tokenizer, texts))  # [n, D]
    _, axes = torch.linalg.eigh(embeddings.t() @ embeddings)  # in rising order
    return vectors @ axes.flip(1)  # [V, D]


def embed(vectors: torch.Tensor, bags: scipy.sparse.csr_matrix) -> torch.Tensor:
    """Unit vectors of bags [n, V]: the normalised sum of their pieces' vectors, [n, D]."""
    pieces, starts = (
        torch.from_numpy(bags.indices.astype(np.int64)),
        torch.from_numpy(bags.indptr[:-1].astype(np.int64)),
    )
    weights = torch.from_numpy(bags.data)
    summed = functional.embedding_bag(pieces, vectors, starts, mode="sum", per_sample_weights=weights)
    return functional.normalize(summed, dim=1)


def train(
    vectors: torch.Tensor,
    tokenizer,
    rows: Sequence[dict],
    steps: int,
    batch: int,
    learning_rate: float,
    temperature: float,
    seed: int,
    dimensions: Sequence[int] = (),
) -> torch.Tensor:
    """Move the pieces' vectors [V, D] so that queries find their documents among the batch's; InfoNCE, Adam.

    dimensions: the loss is the mean over D and so many leading dimensions, so that short vectors work too.
    """
    torch.manual_seed(seed)
    texts = list(dict.fromkeys(text for row in rows for text in (row["query"], row["document"])))
    place = {text: index for index, text in enumerate(texts)}
    bags = counts(tokenizer, texts)
    hashes = torch.tensor([text_hash(text) for text in texts])
    query = torch.tensor([place[row["query"]] for row in rows])
    document = torch.tensor([place[row["document"]] for row in rows])
    vectors = vectors.clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=learning_rate, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / steps))
    order = torch.empty(0, dtype=torch.long)
    for _ in progress_bar("bag of pieces", range(steps), unit="step"):
        if len(order) < batch:
            order = torch.randperm(len(rows))
        chosen, order = order[:batch], order[batch:]
        asked, answers = query[chosen], document[chosen]
        loss = info_nce(
            embed(vectors, bags[asked.numpy()]),
            embed(vectors, bags[answers.numpy()]),
            torch.arange(len(chosen)),
            temperature,
            known=hashes[answers][:, None],
            document_hashes=hashes[answers],
            dimensions=[vectors.shape[1], *dimensions],
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return vectors.detach()


def as_transformer(
    vectors: torch.Tensor, config: PretrainedConfig, silent: Sequence[int], seed: int
) -> PreTrainedModel:
    """An encoder of `config` whose mean-pooled output is the bag's embedding, in D + SLACK dimensions.

    Layer norm gives every token the same length, and a bag lives by lengths. So a token's missing length goes into
    two more dimensions, once up and once down, which the last layer norm silences. Attention and feed-forward add
    nothing at first: their last matrices are zero, the others random and small, so that gradients reach them from the
    first step without washing the bag away. Layer norm makes the vectors' own scale free: they are written so small
    that one learning rate suits them and the layers. It takes a layer_norm_eps far below SCALE squared.
    silent: tokens that should not count (special ones, the prompts'). vectors: [V, hidden_size - SLACK].
    """
    torch.manual_seed(seed)
    transformer = AutoModel.from_config(config)
    vectors = vectors - vectors.mean(1, keepdim=True)
    vectors[list(silent)] *= 0.02
    lengths = vectors.norm(dim=1)
    longest = lengths.quantile(0.999)
    vectors = vectors * (1 / lengths.clamp(min=longest))[:, None]  # [V, D], none longer than 1
    slack = ((1 - vectors.pow(2).sum(1)).clamp(min=0) / SLACK).sqrt()[:, None]  # [V, 1]
    with torch.no_grad():
        words = torch.cat([vectors, slack, -slack], dim=1) * config.hidden_size**0.5 * SCALE
        transformer.embeddings.word_embeddings.weight.copy_(words)
        transformer.embeddings.position_embeddings.weight.mul_(SCALE)
        transformer.embeddings.token_type_embeddings.weight.zero_()
        for layer in transformer.encoder.layer:
            layer.attention.self.value.weight.mul_(0.1)
            layer.attention.output.dense.weight.zero_()
            layer.intermediate.dense.weight.mul_(0.1)
            layer.output.dense.weight.zero_()
        transformer.encoder.layer[-1].output.LayerNorm.weight[-SLACK:] = 0
    return transformer


def pieces(transformer: PreTrainedModel) -> torch.Tensor:
    """The bag's vectors out of what `as_transformer` wrote: [V, hidden_size - SLACK], none longer than 1."""
    words = transformer.embeddings.word_embeddings.weight.detach()  # [V, hidden_size]
    return words[:, :-SLACK] / words.norm(dim=1, keepdim=True)
