"""The bi-encoder: load, pool, normalise, encode, save, in the folder layout of sentence-transformers."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModel

from koir.bars import progress_bar
from koir.errors import ModelError
from koir.kernels import unpadded
from koir.kernels.bfloat16 import has_bfloat16
from koir.kernels.inference import Inference, half_linears, same_layers
from koir.kernels.install import install
from koir.loading import configured, json_of, most_tokens, quiet, reach, readable, tokenizer_of, weights, write_model
from koir.manifest import DEMO, model_folder, written_aside
from koir.tokens import BLOCK, CPU_CHUNK, DEFAULT_PROMPTS, GPU_CHUNK, chunked, expanded, tokenise

POOLINGS = ("mean", "cls", "lasttoken")


class Encoder(nn.Module):
    """A transformer, pooled and normalised to unit vectors, with its tokenizer, prompts and maximum length."""

    def __init__(self, transformer: nn.Module, tokenizer, pooling: str, max_seq_length: int, prompts: dict[str, str]):
        super().__init__()
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_seq_length = max_seq_length
        self.prompts = prompts
        self._inference: dict[bool, Inference] = {}  # by half precision or not
        install(transformer)
        if getattr(transformer, "pooler", None) is not None:
            transformer.pooler.requires_grad_(False)  # kept for the file format; nothing here reads its output

    def train(self, mode: bool = True) -> "Encoder":
        """As torch's; weights that will change are no longer kept laid out for `infer`."""
        if mode:
            self._inference.clear()
        return super().train(mode)

    def activation_checkpointing_enable(self, **settings) -> None:
        """For --activation_checkpointing: keep only the inputs of layers, and run the layers again in backward."""
        self.transformer.activation_checkpointing_enable(**settings)

    @property
    def dimensions(self) -> int:
        """D, the length of an embedding."""
        return self.transformer.config.hidden_size

    def embed(self, chunk: dict[str, torch.Tensor]) -> torch.Tensor:
        """One padded chunk (input_ids, attention_mask, each [n, T]) to float32 unit vectors [n, D]."""
        chunk = expanded(chunk)
        if self.why_padded(chunk["input_ids"].device) is None:
            row, lengths = unpadded.flatten(chunk, self.transformer.config)
            hidden = self.transformer(**row).last_hidden_state[0]  # [t, D]
            pooled = unpadded.pool(_at_least_float32(hidden), lengths, self.pooling)  # [n, D]
            return nn.functional.normalize(pooled, dim=-1)  # [n, D]
        return self._pooled(_at_least_float32(self.transformer(**chunk).last_hidden_state), chunk)

    def infer(self, chunk: dict[str, torch.Tensor], bf16: bool = False) -> torch.Tensor:
        """`embed` without gradients, as fast as the device can: a padded chunk to float32 unit vectors [n, D].

        bf16: as for `encode`.
        """
        if not self._by_inference(chunk["input_ids"].device):
            return self._autocast(chunk, bf16)
        bf16 = bf16 and has_bfloat16(chunk["input_ids"].device)
        if bf16 not in self._inference:
            self._inference[bf16] = Inference(self.transformer, bf16, self.pooling == "cls")
        return self._pooled(self._inference[bf16](expanded(chunk)), chunk)

    def _autocast(self, chunk: dict[str, torch.Tensor], bf16: bool) -> torch.Tensor:
        device = chunk["input_ids"].device
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16 and has_bfloat16(device)):
            return self.embed(chunk)

    def keep_inference_alone(self, bf16: bool) -> None:
        """Keep one copy of the weights, laid out for `infer`; nothing else works afterwards."""
        device = next(self.parameters()).device
        bf16 = bf16 and has_bfloat16(device)
        if self._by_inference(device):
            self._inference.clear()
            self._inference[bf16] = Inference(self.transformer, bf16, self.pooling == "cls").alone()
        elif bf16:
            half_linears(self)

    def _by_inference(self, device: torch.device) -> bool:
        return device.type == "cpu" and same_layers(self.transformer)  # a GPU has faster attention for `embed`

    def _pooled(self, hidden: torch.Tensor, chunk: dict[str, torch.Tensor]) -> torch.Tensor:
        """[n, T, D] of a padded chunk to unit vectors [n, D]."""
        if self.pooling == "cls":
            pooled = hidden[:, 0]  # [n, D]
        elif self.pooling == "lasttoken":
            last = chunk["attention_mask"].sum(1) - 1  # [n]; padding stands to the right
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]  # [n, D]
        else:
            mask = chunk["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # [n, T, 1]
            pooled = (hidden * mask).sum(1) / mask.sum(1)  # [n, D]
        return nn.functional.normalize(pooled, dim=-1)  # [n, D]

    def why_padded(self, device: torch.device) -> str | None:
        """Why chunks stay padded on a device, in a few words; None where their real tokens are flattened to one row."""
        dtype = next(self.transformer.parameters()).dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return unpadded.why_padded(self.transformer.config, device, dtype)

    def forward(self, chunks: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """All chunks, one after another, concatenated: [U, D]. One call is one forward for a data-parallel wrapper."""
        embeddings = []
        for chunk in chunks:
            torch.clear_autocast_cache()  # with one half-precision copy of a weight for all, gradients add up in it
            embeddings.append(self.embed(chunk))
        return torch.cat(embeddings)  # [U, D]

    @torch.inference_mode()
    def encode(
        self,
        texts: Sequence[str],
        kind: str,
        chunk_tokens: int | None = None,
        progress: str | None = None,
        bf16: bool = False,
    ) -> np.ndarray:
        """Texts to float32 unit vectors [len(texts), D], in order.

        kind: "query" or "document", which chooses the saved prompt. chunk_tokens: padded tokens that go through the
        transformer at once; default: 1,024 on a CPU, whose cache they must fit, else 32,768. progress: the name of a
        progress bar, or None for silence. bf16: matrix products in bfloat16 where the chip has it (AVX512-BF16, AMX,
        GPUs since Ampere), which is faster and moves cosines by less than 0.01; elsewhere float32 as without it.
        Raises ModelError where a number is not finite.
        """
        training = self.training
        self.eval()
        forward = self._autocast if training else self.infer
        try:
            device = next(self.parameters()).device
            chunk_tokens = chunk_tokens or (CPU_CHUNK if device.type == "cpu" else GPU_CHUNK)
            vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)  # [n, D]
            with progress_bar(progress, total=len(texts), unit="text", leave=False) as bar:
                for start in range(0, len(texts), BLOCK):
                    part = [self.prompts[kind] + text for text in texts[start : start + BLOCK]]
                    sequences = tokenise(self.tokenizer, part, self.max_seq_length)
                    chunks, inverse = chunked(sequences, self.tokenizer.pad_token_id, chunk_tokens, self.max_seq_length)
                    rows = []
                    for chunk in chunks:
                        chunk = {name: tensor.to(device) for name, tensor in chunk.items()}
                        rows.append(forward(chunk, bf16).cpu())
                        bar.update(len(rows[-1]))
                    vectors[start : start + len(part)] = torch.cat(rows)[inverse].numpy()
            if not np.isfinite(vectors).all():
                raise ModelError("the encoder", "embeddings that are not finite", "weights that are, of a sound run")
            return vectors
        finally:
            self.train(training)

    def too_long(self, texts: Sequence[str], kind: str, most: int | None = None) -> int:
        """How many texts, prompt and special tokens included, have more tokens than `most`; default: than are read.

        kind: as for `encode`.
        """
        prompted, most = [self.prompts[kind] + text for text in texts], most or self.max_seq_length
        return sum(len(ids) > most for ids in tokenise(self.tokenizer, prompted, most + 1)) if prompted else 0

    def save(self, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write a model folder that sentence-transformers, TEI, vLLM and Infinity read; it appears whole or not at all.

        state_dict: this module's weights where they live elsewhere (sharded training).
        """
        with written_aside(Path(folder)) as aside:
            write_model(self, aside, state_dict)
            for name, content in self._description().items():
                (aside / name).parent.mkdir(exist_ok=True)
                (aside / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def _description(self) -> dict[str, object]:
        parts = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
        modules = [
            {"idx": i, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (name, path, kind) in enumerate(parts)
        ]
        modes = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
        pooling = {"word_embedding_dimension": self.dimensions}
        pooling |= {
            f"pooling_mode_{mode}": mode in (self.pooling, f"{self.pooling}_token", f"{self.pooling}_tokens")
            for mode in modes
        }
        return {
            "modules.json": modules,
            "sentence_bert_config.json": {"max_seq_length": self.max_seq_length, "do_lower_case": False},
            "1_Pooling/config.json": pooling | {"include_prompt": True},
            "config_sentence_transformers.json": {
                "prompts": self.prompts,
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
        }


def _at_least_float32(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def load_encoder(
    path: str,
    pooling: str | None = None,
    max_seq_length: int | None = None,
    prompts: dict[str, str | None] | None = None,
    trust_remote_code: bool = False,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    num_hidden_layers: int | None = None,
    default_prompts: dict[str, str] = DEFAULT_PROMPTS,
) -> Encoder:
    """Load a run folder, model folder, hub name or `demo` as an Encoder, in float32.

    dropout, attention_dropout: probabilities while training, in place of the model's own. num_hidden_layers: only the
    first so many layers are kept. What else is not given is read from the folder, and where that is silent: mean
    pooling, 512 tokens, `default_prompts` (e5's).
    Raises ModelError when the model is not to be had or cannot be pooled and normalised.
    """
    name = str(DEMO / "base") if path == "demo" else model_folder(path)
    reach(name)
    with readable(path):
        saved = _saved_settings(name, pooling)
        config = configured(path, name, trust_remote_code, dropout, attention_dropout, num_hidden_layers)
        if config.is_encoder_decoder:
            raise ModelError(path, f"an encoder-decoder ({config.model_type})", "an encoder")
        kind = (config.architectures or [""])[0]
        if kind.endswith("ForSequenceClassification") and config.num_labels == 1:
            raise ModelError(path, f"a reranker ({kind}, one score)", "an encoder")
        tokenizer = tokenizer_of(path, name, trust_remote_code)
        with quiet(num_hidden_layers is not None):  # the layers left out are no news
            transformer, missing = weights(AutoModel, name, config, trust_remote_code)
    if absent := sorted(key for key in missing if "pooler." not in key):
        raise ModelError(path, f"no weights for {absent[0]}", "a complete model")
    longest = most_tokens(transformer.config)
    length = max_seq_length or min(saved["max_seq_length"] or 512, longest)
    if length > longest:
        raise ModelError(f"--max_seq_length {length}", f"{path} with {longest} positions", f"at most {longest}")
    prompts = {kind: text for kind, text in (prompts or {}).items() if text is not None}
    prompts = default_prompts | saved["prompts"] | prompts
    return Encoder(transformer, tokenizer, saved["pooling"] or "mean", length, prompts)


def _saved_settings(name: str, pooling: str | None) -> dict:
    """Pooling, unless it is given, maximum length and prompts as the folder records them (any may be missing)."""
    settings = {"pooling": pooling, "max_seq_length": None, "prompts": {}}
    modules = json_of(name, "modules.json") or []
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ModelError(name, f"a {sorted(unknown)[0]} module", "a transformer with pooling and normalising alone")
    for module in modules:
        if module["type"].endswith("Pooling") and pooling is None:
            settings["pooling"] = _saved_pooling(name, json_of(name, f"{module['path']}/config.json") or {})
    settings["max_seq_length"] = (json_of(name, "sentence_bert_config.json") or {}).get("max_seq_length")
    prompts = (json_of(name, "config_sentence_transformers.json") or {}).get("prompts") or {}
    settings["prompts"] = {
        kind: prompts[key]
        for kind, keys in (("query", ["query"]), ("document", ["document", "passage"]))
        for key in keys[::-1]
        if key in prompts
    }
    texts = all(isinstance(text, str) for text in settings["prompts"].values())
    if not texts or not isinstance(settings["max_seq_length"], int | None) or (settings["max_seq_length"] or 8) < 8:
        found = f"prompts {settings['prompts']}, max_seq_length {settings['max_seq_length']}"
        raise ModelError(name, found[:200], "prompts that are texts, and at least 8 tokens")
    return settings


def _saved_pooling(name: str, config: dict) -> str | None:
    chosen = {key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
              for key, on in config.items() if key.startswith("pooling_mode_") and on is True}  # fmt: skip
    if "pooling_mode" in config:
        chosen |= {config["pooling_mode"]}
    if chosen and (len(chosen) > 1 or not chosen <= set(POOLINGS)):
        raise ModelError(
            name,
            f"pooling {', '.join(sorted(chosen))}",
            f"one of {', '.join(POOLINGS)}; --pooling overrides the folder",
        )
    return chosen.pop() if chosen else None
