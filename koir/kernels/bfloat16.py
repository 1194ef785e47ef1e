"""Where products in bfloat16 are the chip's own, and float32 in their place where they are not."""

import os
import sys

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether the chip multiplies bfloat16 by itself: AVX512-BF16 or AMX, or a GPU since Ampere."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def or_float32(asked: bool, device: torch.device, flag: str, loud: bool = True) -> bool:
    """Whether products are in bfloat16: asked for, and the chip's own. If only asked for, a line names the flag.

    Of several processes the first says it; without `loud` none does. Without such instructions bfloat16 is a hundred
    times slower than float32 (AVX2, torch 2.13), or there is no product at all.
    """
    native = has_bfloat16(device)
    if asked and not native and loud and os.environ.get("RANK", "0") == "0":
        found = "neither AVX512-BF16 nor AMX" if device.type == "cpu" else "a GPU before Ampere (--fp16 is its own)"
        print(f"note: {flag}: found {found}; float32 is used, which is faster here, and exact", file=sys.stderr)
    return asked and native
