"""Attention without padding on GPUs: a chunk's real tokens in one row, through torch's variable-length kernel."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from koir.kernels.attention import attend, pays

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

NAME = "koir"  # this attention, where a model's config names its attention
# Absolute positions, by model type: does counting start behind the padding token's id?
COUNTED_FROM_PADDING = {"xlm-roberta": True, "roberta": True, "camembert": True, "bert": False}


def attention(module, query, key, value, attention_mask, cu_seq_lens_q=None, max_length_q=None, **kwargs):
    """Variable-length attention where a chunk was flattened (cu_seq_lens_q is given), else transformers' padded SDPA.

    On a CPU koir/kernels/attention.py's, where that is the faster.

    query, key, value: [1, H, T, d] of T tokens of all texts, or padded [n, H, T, d]. Returns [1 or n, T, H, d], None.
    """
    dropout = kwargs.get("dropout", 0.0)
    if cu_seq_lens_q is None and pays(query, dropout) and not getattr(module, "is_causal", False):
        return attend(query, key, value, attention_mask, dropout, kwargs.get("scaling")), None
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    flat = [part[0].transpose(0, 1) for part in (query, key, value)]  # [T, H, d] each
    bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    return varlen_attn(*flat, *bounds, scale=kwargs.get("scaling"))[None], None  # [1, T, H, d]


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # an unknown name would silently mean no mask at all


def prepare(transformer: torch.nn.Module) -> None:
    """Let a model choose between padded and unpadded attention, chunk by chunk, where its kind is known here."""
    config = transformer.config
    if config.model_type in COUNTED_FROM_PADDING and config._attn_implementation == "sdpa":
        transformer.set_attn_implementation(NAME)


def why_padded(config, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why chunks of a model stay padded, in a few words; None where they are flattened."""
    if config._attn_implementation != NAME:
        return f"{config.model_type} models are not flattened"
    if device.type != "cuda":
        return "no GPU"
    if varlen_attn is None:
        return f"torch {torch.__version__} has no variable-length attention"
    if dtype not in (torch.bfloat16, torch.float16) or torch.cuda.get_device_capability(device) < (8, 0):
        return "variable-length attention needs bf16 or fp16 on an Ampere GPU or newer"
    if getattr(config, "attention_probs_dropout_prob", 0):
        return f"attention dropout {config.attention_probs_dropout_prob} (--attention_dropout 0 lets it run)"
    return None


def flatten(chunk: dict[str, torch.Tensor], config) -> tuple[dict, torch.Tensor]:
    """A padded chunk (input_ids, attention_mask, each [n, T]) as one row of its t real tokens, and the n lengths.

    The first result goes to the transformer: input_ids and position_ids [1, t], cumulated lengths [n + 1].
    """
    real = chunk["attention_mask"].bool()  # [n, T]
    lengths = real.sum(1)  # [n]
    first = config.pad_token_id + 1 if COUNTED_FROM_PADDING[config.model_type] else 0
    places = real.flatten().nonzero().squeeze(1)  # [t]; the one time that a GPU is waited for
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)  # [n + 1]
    ids, positions = chunk["input_ids"].flatten()[places], places % real.shape[1] + first  # [t] each
    row = {"input_ids": ids[None], "position_ids": positions[None]}  # [1, t] each
    return row | {"cu_seq_lens_q": bounds, "max_length_q": real.shape[1]}, lengths


def pool(hidden: torch.Tensor, lengths: torch.Tensor, pooling: str) -> torch.Tensor:
    """Token vectors [t, D] of n texts, one after another, to one vector a text [n, D]: mean, first (cls) or last."""
    if pooling == "cls":
        return hidden[lengths.cumsum(0) - lengths]  # [n, D]
    if pooling == "lasttoken":
        return hidden[lengths.cumsum(0) - 1]  # [n, D]
    numbers = torch.arange(len(lengths), device=hidden.device)  # [n]
    text = torch.repeat_interleave(numbers, lengths, output_size=len(hidden))  # [t]
    sums = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, text, hidden)  # [n, D]
    return sums / lengths[:, None]  # [n, D]
