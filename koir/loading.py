"""What loading and saving an encoder and a reranker have in common: the hub, dropout, what a folder says of itself."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from huggingface_hub import HfApi, try_to_load_from_cache
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import cached_file

from koir.errors import ModelError, UserError, refused_by_machine

MOST_LABELS = 100_000


def reach(name: str) -> None:
    """Ask the hub once for a name that is neither here nor in its cache; every file would else be tried five times.

    Raises ModelError where it does not answer.
    """
    if Path(name).exists() or try_to_load_from_cache(name, "config.json"):
        return
    try:
        HfApi().model_info(name, timeout=20)
    except Exception as error:  # the hub client raises many kinds; all mean the same here
        raise not_loaded(name, error) from None


@contextlib.contextmanager
def quiet(on: bool) -> Iterator[None]:
    """No news from transformers inside, where `on`: what it would say is expected."""
    level = transformers.utils.logging.get_verbosity()
    if on:
        transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)


@contextlib.contextmanager
def _without_bars(on: bool) -> Iterator[None]:
    """No bars of transformers inside, where `on`: a file is read or written in a moment, and logs would keep each."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    if on:
        transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if on and shown:
            transformers.utils.logging.enable_progress_bar()


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Whatever goes wrong inside is a ModelError of `path`: libraries in other languages raise kinds of their own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise refused_by_machine(error) or not_loaded(path, error) from None


def configured(
    path: str,
    name: str,
    trust_remote_code: bool,
    dropout: float | None,
    attention_dropout: float | None,
    num_hidden_layers: int | None,
):
    """The configuration of the model `name` (which the user called `path`), with what flags change in it.

    dropout, attention_dropout: probabilities while training, in place of the model's own. num_hidden_layers: only the
    first so many layers are kept. Raises ModelError for a value that the model cannot have.
    """
    raw = json_of(name, "config.json")
    labels = raw.get("num_labels") if isinstance(raw, dict) else None
    if isinstance(labels, int) and labels > MOST_LABELS:  # AutoConfig would name each
        raise ModelError(f"{name}/config.json", f"num_labels {labels:,}", f"at most {MOST_LABELS:,}; a reranker has 1")
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    _set_dropout(config, "--dropout", dropout, ("hidden_dropout_prob", "embedding_dropout", "mlp_dropout", "dropout"))
    _set_dropout(
        config, "--attention_dropout", attention_dropout, ("attention_probs_dropout_prob", "attention_dropout")
    )
    if num_hidden_layers is not None:
        if not 1 <= num_hidden_layers <= config.num_hidden_layers:
            there = f"{path} with {config.num_hidden_layers} layers"
            raise ModelError(f"--num_hidden_layers {num_hidden_layers}", there, "1 to that many")
        config.num_hidden_layers = num_hidden_layers
        if getattr(config, "layer_types", None):  # one for each, as ModernBERT and Qwen3 have them
            config.layer_types = config.layer_types[:num_hidden_layers]
    return config


def weights(kind, name: str, config, trust_remote_code: bool) -> tuple[torch.nn.Module, set[str]]:
    """An Auto class's model of the folder or hub name, in float32 and from safetensors alone; what had no weights.

    Raises ModelError where a folder's config.json asks for other sizes than its weights have.
    """
    _sizes_agree(kind, name, config, trust_remote_code)
    with _without_bars(Path(name).is_dir()):  # what comes from a hub takes its time
        transformer, told = kind.from_pretrained(
            name,
            config=config,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    return transformer, told["missing_keys"]


def _sizes_agree(kind, name: str, config, trust_remote_code: bool) -> None:
    """ModelError before anything is allocated: a configuration of any size takes all memory that it names."""
    there = {}
    for file in Path(name).glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            there |= {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118 (no mapping)
    if not there:  # a hub name
        return
    layers = getattr(config, "num_hidden_layers", 0)
    if layers > len(there):
        raise ModelError(
            f"{name}/config.json", f"num_hidden_layers {layers:,}", f"at most {len(there)}, as the weights"
        )
    with torch.device("meta"):
        wanted = kind.from_config(config, trust_remote_code=trust_remote_code)
    prefix = wanted.base_model_prefix + "."
    for key, tensor in wanted.state_dict().items():
        found = there.get(key) or there.get(key.removeprefix(prefix)) or there.get(prefix + key)
        if found and found != list(tensor.shape):
            raise ModelError(
                f"{name}/config.json", f"{key} of {list(tensor.shape)}", f"{found}, as the weights have it"
            )


def tokenizer_of(path: str, name: str, trust_remote_code: bool):
    """The tokenizer of the folder or hub name `name`, which the user called `path`.

    Raises ModelError for one that cannot pad or knows no words, as transformers makes where a tokenizer's files are
    missing.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    expected = "a folder or hub name with its tokenizer's files"
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ModelError(path, f"a tokenizer that knows {len(tokenizer)} special tokens and no words", expected)
    if tokenizer.pad_token_id is None:
        raise ModelError(path, "a tokenizer without a padding token", "one that has it")
    return tokenizer


def name_accelerator() -> None:
    """Tell DeepSpeed, where it is installed, that a machine without a GPU has none: it warns of what it has to find."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def write_model(model, folder: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
    """The transformer and tokenizer of an encoder or reranker, as releases of transformers from 4 on read them."""
    if state_dict is not None:
        state_dict = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    name_accelerator()  # transformers imports DeepSpeed to save
    with _without_bars(True):
        model.transformer.save_pretrained(folder, state_dict=state_dict)
    share_weights(folder)
    model.tokenizer.model_max_length = model.max_seq_length
    if words := getattr(model.tokenizer, "backend_tokenizer", None):  # how it cut texts last is no part of the model
        words.no_truncation()
        words.no_padding()
    model.tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    if saved.get("tokenizer_class") == "TokenizersBackend":  # what 5 calls it; 4, in many servers, knows this name
        saved["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(saved, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def share_weights(folder: Path) -> None:
    """Give a model folder's weights the mode of its config.json.

    safetensors 0.8 leaves them to their owner alone (its issue 782), but what one user trains another often serves.
    """
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / "config.json").stat().st_mode)


def _set_dropout(config, flag: str, probability: float | None, names: tuple[str, ...]) -> None:
    if probability is None:
        return
    there = [name for name in names if hasattr(config, name)]
    if not there or not 0 <= probability < 1:
        found = f"{probability}" if there else f"a {config.model_type} model without such a setting"
        raise ModelError(flag, found, "a probability below 1, for a model that has this dropout")
    for name in there:
        setattr(config, name, probability)


def json_of(name: str, file: str) -> object:
    """The content of a model folder's or hub name's JSON file; None without it. Raises ModelError for a broken one."""
    try:
        found = cached_file(
            name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    except OSError:
        return None
    try:
        return json.loads(Path(found).read_text(encoding="utf-8")) if found else None
    except ValueError as error:
        raise ModelError(
            f"{name}/{file}", f"broken JSON ({error})", "the file that sentence-transformers writes"
        ) from None


def not_loaded(path: str, error: Exception) -> ModelError:
    """What went wrong, in one line, to be raised."""
    if Path(path).exists() or path == "demo" or try_to_load_from_cache(path, "config.json"):
        said = " ".join(str(error).split()).partition(" Please ")[0] or type(error).__name__  # asks for what is no flag
        expected = "a transformers model in safetensors with its tokenizer"
        if "trust_remote_code" in said:
            said, expected = "a model with code of its own", "--trust_remote_code, where that code is trusted"
        return ModelError(path, said[:200], expected)
    why = f"no such folder here, and no answer from the hub ({type(error).__name__})"
    return ModelError(path, why, "a reachable hub, or a local folder")


def most_tokens(config) -> int:
    """How many positions a transformer has for tokens; 512 where its configuration does not say."""
    longest = getattr(config, "max_position_embeddings", None) or 512
    if getattr(config, "position_embedding_type", "absolute") == "absolute" and config.pad_token_id:
        kin = config.model_type in ("camembert", "mpnet") or "roberta" in config.model_type
        longest -= config.pad_token_id + 1 if kin else 0
    return longest
