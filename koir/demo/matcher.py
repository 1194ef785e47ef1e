"""A cross-encoder that is written, not drawn: before anything is learned it scores pairs much as BM25 does, but softly.

A cross-encoder from random weights has to find out that equal words matter, and on few rows it does not. Here layer 1
looks each piece up in the other text, layer 2 adds up over the query how rare the found pieces are, and everything else
is free to learn.
"""

import copy
from collections.abc import Sequence

import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from koir.demo import bag
from koir.encoder import Encoder, load_encoder
from koir.errors import ModelError
from koir.reranker import Reranker

LAYERS = 2  # the least; more would be free to learn, and cost as much as these
RESERVED = 20  # the last dimensions: pairs (x, -x), which leave a token's mean at 0; the heads share the rest
RARE, REST, SIDE, START, FOUND, ASKED, DOCUMENT = range(7)  # what the pairs hold
MEANING = 0.78  # share of a token's squared length that is its piece's direction
SCALE = 0.03  # of an embedding's element: layer norm makes it free, and it sets how fast Adam moves pieces
RAREST, ASIDE, BEGIN, RAISED = 3.0, 2.0, 10.0, 4.0  # heights of RARE (at most), SIDE, START and DOCUMENT
SHARPNESS, THRESHOLD = 6.0, 0.8  # logit of a piece with itself; which likeness `<s>` outweighs
APART = 6.0  # logits that keep a text's own tokens out
STEEPNESS = 2.0  # rarity is the length of a piece's vector to this power
STEEP, GAIN = 1.5, 16.0  # from what was found to logits: GAIN * tanh(STEEP * found)


def two_sided(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Let a tokenizer say where the document begins: type 0 for `<s> query </s>`, type 1 for `</s> document </s>`."""
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s>:0 $A:0 </s>:0 </s>:1 $B:1 </s>:1", special_tokens=special
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def written(encoder: Encoder, name: str, seed: int) -> Reranker:
    """A reranker out of the pieces of an encoder that is `demo` or was tuned from it. name: what errors call it.

    Raises ModelError for another encoder: the lengths of its vectors do not say how rare a piece is.
    """
    demo = load_encoder("demo")
    alike = encoder.tokenizer.get_vocab() == demo.tokenizer.get_vocab()
    sizes = [
        (model.transformer.config.hidden_size, model.transformer.config.num_hidden_layers) for model in (encoder, demo)
    ]
    if not alike or sizes[0] != sizes[1]:
        raise ModelError(name, "an encoder that was not tuned from demo", "demo, or a model that began as it")
    tokenizer = two_sided(encoder.tokenizer)
    vectors, special = bag.pieces(encoder.transformer), tokenizer.all_special_ids
    model = as_cross_encoder(vectors, encoder.transformer.config, special, tokenizer.cls_token_id, seed)
    return Reranker(model, tokenizer, encoder.max_seq_length)


def as_cross_encoder(
    vectors: torch.Tensor, config: PretrainedConfig, special: Sequence[int], start: int, seed: int
) -> PreTrainedModel:
    """A cross-encoder of `config` (at least two layers) out of a bag's piece vectors [V, d].

    **Tokens.** A token is its piece's direction and pairs of dimensions: how rare the piece is (RARE: the length of its
    vector), which text it stands in (SIDE), whether it is `<s>` (START); REST fills it up to the length that layer norm
    gives it anyway.
    **Layer 1.** Each token looks at the tokens of the other text, by likeness, and at `<s>`. With n equal pieces there,
    those get n e^b of n e^b + e^(bt) + the others' share: BM25's saturation and its length normalisation. What it sees
    is subtracted from its direction. Layer norm makes up for the loss, so all else of a found token grows, RARE too, up
    to about 2.1 times: rarity * (1 + 1.1 * found). `<s>` looks at the query and keeps its mean rarity (ASKED). The
    feed-forward part raises DOCUMENT in document tokens, alike whether they were found.
    **Layer 2.** `<s>` takes the mean of RARE over the query (FOUND). The head scores FOUND - ASKED.
    Other matrices end in zeros: they add nothing at first and learn from the first update.
    special: pieces without meaning; start: the id of `<s>`.
    """
    torch.manual_seed(seed)
    config = copy.deepcopy(config)
    config.type_vocab_size, config.num_labels, config.num_hidden_layers = 2, 1, LAYERS
    config.hidden_dropout_prob = 0.0  # a token that loses SIDE or START is lost
    model = AutoModelForSequenceClassification.from_config(config)
    backbone = model.base_model
    with torch.no_grad():
        _write_tokens(backbone.embeddings, _tokens(vectors, config.hidden_size, special, start))
        for layer in backbone.encoder.layer:
            layer.attention.output.dense.weight.zero_()
            layer.output.dense.weight.zero_()
        first, second = backbone.encoder.layer[:2]
        _look_up(first.attention, config.num_attention_heads)
        _raise_documents(first.intermediate.dense, first.output.dense)
        _add_up(second.attention, config.num_attention_heads)
        _judge(model.classifier)
    return model


def _at(pair: int, size: int) -> int:
    """The first of a pair's two dimensions."""
    return size - RESERVED + 2 * pair


def _put(matrix: torch.Tensor, pair: int, values: torch.Tensor | float) -> None:
    """Write x and -x into a pair's dimensions of [..., D]."""
    place = _at(pair, matrix.shape[-1])
    matrix[..., place], matrix[..., place + 1] = values, -values


def _tokens(vectors: torch.Tensor, size: int, special: Sequence[int], start: int) -> torch.Tensor:
    """What each piece is before types are added: [V, size], all of squared length `size` with ASIDE."""
    vectors = vectors - vectors.mean(1, keepdim=True)
    lengths = vectors.norm(dim=1)
    rarity = (lengths / lengths.quantile(0.999)).clamp(max=1) ** STEEPNESS  # [V]
    turn = nn.init.orthogonal_(torch.empty(size - RESERVED, vectors.shape[1]))
    directions = vectors @ turn.T  # [V, size - RESERVED]
    directions = functional.normalize(directions - directions.mean(1, keepdim=True), dim=1) * (MEANING * size) ** 0.5
    directions[list(special)], rarity[list(special)] = 0, 0
    tokens = torch.cat([directions, torch.zeros(len(vectors), RESERVED)], dim=1)  # [V, size]
    _put(tokens, RARE, RAREST * rarity)
    _put(tokens[start], START, BEGIN)
    missing = size - tokens.square().sum(1) - 2 * ASIDE**2  # [V]
    _put(tokens, REST, (missing.clamp(min=0) / 2).sqrt())
    return tokens


def _write_tokens(embeddings: nn.Module, tokens: torch.Tensor) -> None:
    embeddings.word_embeddings.weight.copy_(tokens * SCALE)
    embeddings.position_embeddings.weight.zero_()
    types = embeddings.token_type_embeddings.weight.zero_()  # [2, D]
    _put(types, SIDE, torch.tensor([-ASIDE, ASIDE]) * SCALE)


def _look_up(attention: nn.Module, heads: int) -> None:
    """Each head compares its own part of the directions; two more rows of a head hold the sides and `<s>`."""
    own, out = attention.self, attention.output.dense.weight
    size = out.shape[0]
    wide, part = size // heads, (size - RESERVED) // heads
    unit = wide**0.5  # attention divides by it
    likeness = (SHARPNESS * unit * heads / (MEANING * size)) ** 0.5
    for linear in (own.query, own.key, own.value):
        linear.weight.zero_()
    side, start, rare = _at(SIDE, size), _at(START, size), _at(RARE, size)
    for head in range(heads):
        rows, columns = torch.arange(part) + head * wide, torch.arange(part) + head * part
        own.query.weight[rows, columns] = own.key.weight[rows, columns] = likeness
        own.value.weight[rows, columns] = 1
        out[columns, rows] = -1
        row = head * wide + part  # APART for the other text, -APART for one's own; the reverse for `<s>`
        own.key.weight[row, side] = 1 / ASIDE
        own.query.weight[row, side] = -APART * unit / ASIDE
        own.query.weight[row, start] = -2 * APART * unit / BEGIN
        own.value.weight[row, rare] = 1
        _put(out[:, row], ASKED, 1 / heads)
        row += 1  # of `<s>`: SHARPNESS * THRESHOLD above the other text, for queries and documents; not for itself
        own.key.weight[row, start] = 1 / BEGIN
        own.query.bias[row] = unit * (SHARPNESS * THRESHOLD + APART)
        own.query.weight[row, side] = -APART * unit / ASIDE
        own.query.weight[row, start] = -unit * (SHARPNESS * THRESHOLD + 4 * APART) / BEGIN


def _raise_documents(up: nn.Linear, down: nn.Linear) -> None:
    """DOCUMENT is RAISED where SIDE is above 1.5, else 0: a ramp less the same ramp, later."""
    for unit, bias in ((0, -2.0), (1, -2.0 - RAISED)):
        up.weight[unit] = 0
        up.weight[unit, _at(SIDE, up.in_features)], up.bias[unit] = 4.0, bias
    _put(down.weight[:, 0], DOCUMENT, 1.0)
    _put(down.weight[:, 1], DOCUMENT, -1.0)


def _add_up(attention: nn.Module, heads: int) -> None:
    """The first head takes the mean of RARE over tokens without DOCUMENT."""
    own, out = attention.self, attention.output.dense.weight
    wide = len(out) // heads
    for linear in (own.query, own.key, own.value):
        linear.weight[:wide] = 0
    own.query.bias[0] = wide**0.5
    own.key.weight[0, _at(DOCUMENT, len(out))] = -APART / 2
    own.value.weight[0, _at(RARE, len(out))] = 1
    _put(out[:, 0], FOUND, 1.0)


def _judge(head: nn.Module) -> None:
    """FOUND - ASKED through tanh, so large that softmax over candidates is neither flat nor sure of itself."""
    size = head.dense.in_features
    head.dense.weight[0] = 0
    head.dense.weight[0, _at(FOUND, size)], head.dense.weight[0, _at(ASKED, size)] = STEEP, -STEEP
    head.out_proj.weight.zero_()
    head.out_proj.weight[0, 0] = GAIN
