"""The forward pass of BERT-like transformers without gradients: the same numbers as their own, sooner.

What is gained: on a CPU, matrix products by oneDNN with weights laid out once (MKL falls back to old instructions on
chips that are not Intel's), one product for query, key and value; no mask where nothing is padded; in the last layer
only the first token, where only that is read; in bfloat16, weights cast once and sums still in float32.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

ALIKE = {"BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "ElectraModel"}  # the same layer
TOKENS_HINT = 1024  # oneDNN lays weights out for products of about so many tokens


def same_layers(backbone: nn.Module) -> bool:
    """Whether `Inference` knows this transformer's layers; others, and split ones (ZeRO 3), keep their own forward."""
    config = backbone.config
    return not is_deepspeed_zero3_enabled() and (
        type(backbone).__name__ in ALIKE
        and config.hidden_act == "gelu"
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") in ("absolute", None)
    )


def half_linears(model: nn.Module) -> None:
    """Linear weights in bfloat16 once and for all, which autocast would else convert in every forward."""
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.to(torch.bfloat16)


class Inference:
    """A transformer's weights, laid out for its forward pass alone; made again whenever the weights change.

    half: matrix products in bfloat16; residual sums, layer norms and the output stay in float32. first_token: only the
    last layer's output for the first token is wanted, and what is computed for it alone stays in float32 too.
    """

    def __init__(self, backbone: nn.Module, half: bool = False, first_token: bool = False):
        self.backbone, self.half, self.first_token = backbone, half, first_token
        self.weights: tuple | None = None
        self.layers: list[_Layer] = []

    def __call__(self, chunk: dict[str, torch.Tensor]) -> torch.Tensor:
        """One padded chunk (input_ids, attention_mask, perhaps token_type_ids, each [n, T]) to float32 [n, T, D].

        With `first_token`: [n, 1, D].
        """
        self._lay_out()
        inputs = {name: tensor for name, tensor in chunk.items() if name != "attention_mask"}
        hidden = self.backbone.embeddings(**inputs)  # [n, T, D]
        if hasattr(self.backbone, "embeddings_project"):  # ELECTRA's narrow embeddings
            hidden = self.backbone.embeddings_project(hidden)
        mask = chunk["attention_mask"].bool()  # [n, T]
        mask = None if mask.all() else mask[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden

    def alone(self) -> "Inference":
        """Lay the weights out now and free the layers' own, so that there is one copy; their own forward is gone."""
        self._lay_out()
        for parameter in self.backbone.encoder.layer.parameters():
            if parameter.dim() == 2:
                parameter.data = parameter.data.new_empty(0)
        self.weights = self._weights()
        return self

    def _lay_out(self) -> None:
        if (now := self._weights()) != self.weights:
            *others, last = self.backbone.encoder.layer
            self.layers = [_Layer(layer, self.half) for layer in others] + [_Layer(last, self.half, self.first_token)]
            self.weights = now

    def _weights(self) -> tuple:
        return tuple((p.data_ptr(), p._version) for p in self.backbone.parameters())


class _Layer:
    """One layer: self-attention, then the feed-forward part, each added to its input and normalised.

    first_token: of its output only the first token is wanted, [n, 1, D]; half precision is for keys and values then.
    """

    def __init__(self, layer: nn.Module, half: bool, first_token: bool = False):
        own, self.first_token = layer.attention.self, first_token
        self.heads = own.num_attention_heads
        if first_token:
            self.key_value, half = _product([own.key, own.value], half), False
            self.query = _product([own.query], half)
        else:
            self.query_key_value = _product([own.query, own.key, own.value], half)
        self.out, self.attention_norm = _product([layer.attention.output.dense], half), layer.attention.output.LayerNorm
        self.up = _product([layer.intermediate.dense], half, gelu=True)
        self.down, self.norm = _product([layer.output.dense], half), layer.output.LayerNorm

    def __call__(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.first_token:
            key_value = self.key_value(hidden)  # [n, T, 2D]
            hidden = hidden[:, :1]  # [n, 1, D]
            (queries,) = self._heads(self.query(hidden), 1)  # [n, H, 1, d]
            keys, values = self._heads(key_value.to(queries.dtype), 2)  # [n, H, T, d] each
        else:
            queries, keys, values = self._heads(self.query_key_value(hidden), 3)  # [n, H, T, d] each
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        mixed = mixed.transpose(1, 2).flatten(2)  # [n, T or 1, D]
        hidden = self.attention_norm(self.out(mixed) + hidden)
        return self.norm(self.down(self.up(hidden)) + hidden)

    def _heads(self, projected: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """[n, T, parts * D] -> as many [n, H, T, d]."""
        split = projected.unflatten(2, (parts, self.heads, -1))  # [n, T, parts, H, d]
        return split.permute(2, 0, 3, 1, 4).unbind(0)


def _product(linears: list[nn.Linear], half: bool, gelu: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> x @ W.T + b with the weights of several layers side by side, perhaps followed by GELU."""
    dtype = torch.bfloat16 if half else linears[0].weight.dtype
    weight = torch.cat([linear.weight.detach() for linear in linears]).to(dtype)
    bias = torch.cat([linear.bias.detach() for linear in linears]).to(dtype)
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and dtype != torch.float64:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, TOKENS_HINT)
        after = ("gelu", [], "none") if gelu else ("none", [], "")
        return lambda x: _few_shapes(
            x.to(dtype), lambda rows: torch.ops.mkldnn._linear_pointwise(rows, packed, bias, *after)
        )
    if gelu:
        return lambda x: functional.gelu(functional.linear(x.to(dtype), weight, bias))
    return lambda x: functional.linear(x.to(dtype), weight, bias)


def _few_shapes(x: torch.Tensor, product: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A product of x [n, T, K] with rows of zeros at its end: oneDNN compiles each shape it meets and keeps it, about
    0.7 MiB, so there are eight between a power of two and the next."""
    rows = x.flatten(0, 1)  # [n * T, K]
    step = max(16, 1 << max((len(rows) - 1).bit_length() - 4, 0))
    if missing := -len(rows) % step:
        rows = functional.pad(rows, (0, 0, 0, missing))
    return product(rows)[: x.shape[0] * x.shape[1]].unflatten(0, x.shape[:2])  # [n, T, M]
