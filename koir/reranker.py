"""The cross-encoder: load, score pairs, save, in the folder layout of sentence-transformers' CrossEncoder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from koir.bars import progress_bar
from koir.errors import ModelError
from koir.kernels.bfloat16 import has_bfloat16
from koir.kernels.inference import Inference, half_linears, same_layers
from koir.kernels.install import install
from koir.loading import configured, json_of, most_tokens, quiet, reach, readable, tokenizer_of, weights, write_model
from koir.manifest import DEMO, model_folder, written_aside
from koir.passages import passages, strongest
from koir.tokens import BLOCK, CPU_CHUNK, GPU_CHUNK, pad, plan_chunks, tokenise_pairs

HEAD_SEED = 20242
SHOWN = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}  # what CrossEncoder.predict shows


class Reranker(nn.Module):
    """A transformer with one label, its tokenizer and its maximum length: (query, document) -> one raw logit.

    new_head: whether the scoring head was drawn at random, since what was loaded had none.
    """

    def __init__(self, transformer: nn.Module, tokenizer, max_seq_length: int, new_head: bool = False):
        super().__init__()
        self.transformer = transformer
        install(transformer)
        self.tokenizer = tokenizer
        self.max_seq_length = max_seq_length
        self.new_head = new_head
        self._inference: dict[bool, Inference] = {}  # by half precision or not

    @property
    def reads_types(self) -> bool:
        """Whether it takes a tokenizer's token types; a RoBERTa with BERT's tokenizer does not."""
        return getattr(self.transformer.config, "type_vocab_size", 2) >= 2

    def activation_checkpointing_enable(self, **settings) -> None:
        """For --activation_checkpointing: keep only the inputs of layers, and run the layers again in backward."""
        self.transformer.activation_checkpointing_enable(**settings)

    def chunks(
        self, pairs: Sequence[tuple[str, str]], chunk_tokens: int, longest: int | None = None
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor, int]:
        """Pairs to padded chunks of at most `chunk_tokens` tokens, longest first.

        longest: tokens of a pair here, where fewer than the model reads.
        Returns the chunks, [n] where each pair lands in their concatenation, and the number of tokens.
        """
        queries, documents = zip(*pairs, strict=True)
        longest = min(longest or self.max_seq_length, self.max_seq_length)
        coded = tokenise_pairs(self.tokenizer, queries, documents, longest)
        ids, types = coded["input_ids"], coded.get("token_type_ids") if self.reads_types else None
        plan = plan_chunks([len(sequence) for sequence in ids], chunk_tokens, self.max_seq_length)
        chunks = []
        for rows, width in zip(plan.chunks, plan.width, strict=True):
            chunks.append(pad([ids[row] for row in rows], self.tokenizer.pad_token_id, width))
            if types is not None:
                chunks[-1]["token_type_ids"] = pad([types[row] for row in rows], 0, width)["input_ids"]
        return chunks, plan.inverse(), sum(map(len, ids))

    def logits(self, chunk: dict[str, torch.Tensor]) -> torch.Tensor:
        """One padded chunk (input_ids, attention_mask, each [n, T]) to float32 logits [n]."""
        scores = self.transformer(**chunk).logits[:, 0]  # [n]
        return scores.to(torch.promote_types(scores.dtype, torch.float32))  # [n]

    def forward(self, chunks: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """All chunks, one after another, concatenated: [n]. One call is one forward for a data-parallel wrapper."""
        return torch.cat([self.logits(chunk) for chunk in chunks])  # [n]

    @torch.inference_mode()
    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        chunk_tokens: int | None = None,
        progress: str | None = None,
        bf16: bool = False,
        passage_tokens: int | None = None,
    ) -> np.ndarray:
        """(query, document) pairs to float32 raw logits [n], in order.

        chunk_tokens: padded tokens that go through the transformer at once; default: 1,024 on a CPU, whose cache they
        then fit, else 32,768. progress: the name of a progress bar, or None for silence. bf16: matrix products in
        bfloat16 where the chip has it (AVX512-BF16, AMX, GPUs since Ampere), which is faster and moves scores by about
        1%; elsewhere float32 as without it. passage_tokens: read a longer document in passages of so many tokens,
        of which the best counts; None: its beginning alone, as far as the model reads.
        Raises ModelError where a number is not finite.
        """
        if passage_tokens:
            parts = passages(self.tokenizer, [document for _, document in pairs], passage_tokens)
            spread = [(query, part) for (query, _), of_one in zip(pairs, parts, strict=True) for part in of_one]
            return strongest(self.score(spread, chunk_tokens, progress, bf16), parts)
        training = self.training
        self.eval()
        try:
            device = next(self.parameters()).device
            chunk_tokens = chunk_tokens or (CPU_CHUNK if device.type == "cpu" else GPU_CHUNK)
            scores = np.empty(len(pairs), dtype=np.float32)  # [n]
            with progress_bar(progress, total=len(pairs), unit="pair", leave=False) as bar:
                for start in range(0, len(pairs), BLOCK):
                    chunks, inverse, _ = self.chunks(pairs[start : start + BLOCK], chunk_tokens)
                    found = []
                    for chunk in chunks:
                        found.append(self.infer({name: t.to(device) for name, t in chunk.items()}, bf16).cpu())
                        bar.update(len(found[-1]))
                    scores[start : start + len(inverse)] = torch.cat(found)[inverse].numpy()
            if not np.isfinite(scores).all():
                raise ModelError("the reranker", "logits that are not finite", "weights that are, of a sound run")
            return scores
        finally:
            self.train(training)
            if training:  # weights will change, and the memory is wanted
                self._inference.clear()

    def too_long(self, pairs: Sequence[tuple[str, str]], most: int | None = None) -> int:
        """How many (query, document) pairs have more tokens than `most`; default: than are read at once."""
        if not pairs:
            return 0
        most, sides = most or self.max_seq_length, [list(side) for side in zip(*pairs, strict=True)]
        coded = tokenise_pairs(self.tokenizer, *sides, most + 1)["input_ids"]
        return sum(len(ids) > most for ids in coded)

    def infer(self, chunk: dict[str, torch.Tensor], bf16: bool = False) -> torch.Tensor:
        """`logits` without gradients, as fast as the device can: a padded chunk to float32 logits [n].

        Heads of the known transformers read the first token alone.
        """
        backbone, device = self.transformer.base_model, chunk["input_ids"].device
        bf16 = bf16 and has_bfloat16(device)
        if not same_layers(backbone):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return self.logits(chunk).float()
        if bf16 not in self._inference:
            self._inference[bf16] = Inference(backbone, bf16, first_token=True)
        features = self._inference[bf16](chunk)  # [n, 1, D]
        if getattr(backbone, "pooler", None) is not None:  # BERT's own head sits behind it
            features = backbone.pooler(features)  # [n, D]
        return self.transformer.classifier(features)[:, 0].float()

    def keep_inference_alone(self, bf16: bool) -> None:
        """Keep one copy of the weights, laid out for `infer`; nothing else works afterwards."""
        bf16 = bf16 and has_bfloat16(next(self.parameters()).device)
        if same_layers(self.transformer.base_model):
            self._inference[bf16] = Inference(self.transformer.base_model, bf16, True).alone()
        elif bf16:
            half_linears(self)

    def save(self, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write a model folder that CrossEncoder, AutoModelForSequenceClassification, TEI and others read.

        It appears whole or not at all. state_dict: this module's weights where they live elsewhere (sharded training).
        """
        self.transformer.config.sentence_transformers = SHOWN
        with written_aside(Path(folder)) as aside:
            write_model(self, aside, state_dict)


def load_reranker(
    path: str,
    max_seq_length: int | None = None,
    new_head: bool = False,
    trust_remote_code: bool = False,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    num_hidden_layers: int | None = None,
) -> Reranker:
    """Load a run folder, model folder, hub name or `demo` as a Reranker, in float32.

    new_head: a model without a scoring head, such as one of our encoders, is taken too, and its head is drawn from a
    fixed seed: what training may start from. dropout, attention_dropout, num_hidden_layers: as in
    `load_encoder`. max_seq_length: query, document and special tokens together; default: the folder's, at most the
    model's positions.
    Raises ModelError when the model is not to be had or does not give one score a pair.
    """
    name = str(DEMO / "reranker") if path == "demo" else model_folder(path)
    reach(name)
    with readable(path):
        config = configured(path, name, trust_remote_code, dropout, attention_dropout, num_hidden_layers)
        tokenizer = tokenizer_of(path, name, trust_remote_code)
        _one_label(path, config)
        with quiet(True), torch.random.fork_rng(devices=[]):  # a head that is drawn is told by new_head
            torch.manual_seed(HEAD_SEED)
            transformer, missing = weights(AutoModelForSequenceClassification, name, config, trust_remote_code)
        longest = most_tokens(transformer.config)
        saved = (json_of(name, "sentence_bert_config.json") or {}).get("max_seq_length") or tokenizer.model_max_length
        length = max_seq_length or min(saved, longest)
    drawn = _drawn_head(path, transformer, missing, new_head)
    if length > longest:
        raise ModelError(f"--max_seq_length {length}", f"{path} with {longest} positions", f"at most {longest}")
    return Reranker(transformer, tokenizer, length, drawn)


def _one_label(path: str, config) -> None:
    """One label where there is no head yet; a head with several labels, or of another kind, is no score."""
    kind = (config.architectures or ["a model"])[0]
    if kind.endswith("ForSequenceClassification") and config.num_labels != 1:
        raise ModelError(path, f"a head with {config.num_labels} labels", "a cross-encoder with one label")
    if kind.endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise ModelError(path, f"a {kind}", "a cross-encoder with a scoring head (AutoModelForSequenceClassification)")
    config.num_labels = 1


def _drawn_head(path: str, transformer: nn.Module, missing: set[str], allowed: bool) -> bool:
    """Whether the head was drawn at random; ModelError where that is not wanted, or where more than it is missing."""
    body = [key for key in missing if key.startswith(transformer.base_model_prefix + ".") and ".pooler." not in key]
    if body:
        raise ModelError(path, f"no weights for {sorted(body)[0]}", "a complete model")
    if missing and not allowed:
        expected = "a reranker: bash reranker/scripts/finetune.sh --model_name_or_path " + path + " trains one from it"
        raise ModelError(path, "a model without a scoring head", expected)
    return bool(missing)
