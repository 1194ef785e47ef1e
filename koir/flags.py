"""The one parser: recipe keys become flags, then the command line overrides them; mistakes are refused at the door."""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import HfArgumentParser
from transformers import TrainingArguments as HfTrainingArguments

from koir.errors import FlagError, nearest
from koir.yaml_text import as_text, read_yaml

# Trainer flags that would change nothing here, or would break what the contracts promise; they do not exist for us.
NOT_OURS = {
    "label_smoothing_factor",
    "prediction_loss_only",
    "per_device_eval_batch_size",
    "eval_do_concat_batches",
    "local_rank",
    "eval_use_gather_object",
    "eval_accumulation_steps",
    "include_for_metrics",
    "batch_eval_metrics",
    "do_train",
    "do_eval",
    "do_predict",
    "label_names",
    "length_column_name",
    "remove_unused_columns",
    "auto_find_batch_size",
    "neftune_noise_alpha",
    "use_cache",
    "include_num_input_tokens_seen",
    "average_tokens_across_devices",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "bf16_full_eval",
    "fp16_full_eval",
    "parallelism_config",
    "fsdp",
    "fsdp_config",
    "use_liger_kernel",
    "liger_kernel_config",
    "push_to_hub",
    "hub_token",
    "hub_private_repo",
    "hub_model_id",
    "hub_strategy",
    "hub_always_push",
    "hub_revision",
    "train_sampling_strategy",
    "logging_nan_inf_filter",
    "save_only_model",
    "ignore_data_skip",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "restore_callback_states_from_checkpoint",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "enable_jit_checkpoint",
    "ddp_static_graph",
    "ddp_find_unused_parameters",
    "accelerator_config",
    "eval_on_start",
    "greater_is_better",
    "torch_empty_cache_steps",
    "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers",
    "debug",
}
# Why, where people ask; the refusal says it.
REASONS = {
    "torch_compile": "its name is --compile (v1.1 and the reranker, on a GPU), which lets a replay draw the first "
    "pass's dropout",
    "gradient_checkpointing": "its name is --activation_checkpointing",
    "auto_find_batch_size": "the batch decides the loss; memory is bounded by --chunk_tokens",
    "fsdp": "processes share memory by --deepspeed, which is what is tested",
    "neftune_noise_alpha": "its noise would be drawn anew when a chunk is replayed",
    "label_smoothing_factor": "for classes; a false negative is what --guide_model_name_or_path finds",
    "train_sampling_strategy": "chunks are sorted by length already; --batch_by says which rows meet",
    "auto_retry": "it is finetune.sh's alone, on its command line and without a value",
    "push_to_hub": "a run only writes its folder; hf upload FOLDER sends it",
}
FORMER = {"greater_is_better"}  # what recipe.yaml of earlier runs may have, though it never changed anything
WORDS = {"save_strategy", "eval_strategy", "logging_strategy"}  # flags for which "no" is a word, not a truth value
# Inherited flags that every user meets; --help shows them beside our own.
EVERYDAY = {
    "seed",
    "eval_steps",
    "max_steps",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "use_cpu",
    "load_best_model_at_end",
    "weight_decay",
    "lr_scheduler_type",
    "max_grad_norm",
    "dataloader_num_workers",
    "deepspeed",
}


class _Parser(HfArgumentParser):
    """HfArgumentParser without the flags that do nothing here, and with errors that name the flag."""

    def _parse_dataclass_field(self, parser, field):
        if field.name not in NOT_OURS:
            HfArgumentParser._parse_dataclass_field(parser, field)

    def error(self, message: str):
        flag, _, rest = message.partition(": ")
        flag = flag.removeprefix("argument ").partition("/")[0]  # --eval_tasks/--eval-tasks
        if no_truth := re.match(r"Truthy value expected: got (.*?) but expected", rest):
            raise FlagError(flag, no_truth[1], "true or false")
        if rest.startswith("expected "):
            raise FlagError(flag, "nothing", rest.removeprefix("expected ").replace("argument", "value"))
        raise FlagError(flag, rest or message, "what --help says")


def parse(
    groups: Sequence[type], argv: Sequence[str] | None = None, description: str = "", recipes: bool = True
) -> tuple:
    """One instance of each dataclass in `groups`, and, where `recipes` are read, the recipe's path (None without one).

    argv: `[RECIPE.yaml] [--flag value ...]`. Precedence: defaults, recipe, command line. Raises FlagError for an
    unknown flag or recipe key (with the nearest name) and for contradictions, before anything is loaded.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(groups, description=description, allow_abbrev=False, add_help=False)
    if "--help" in argv or "--help_all" in argv or "-h" in argv:
        print(_help(parser, groups, "--help_all" in argv, recipes, description))
        raise SystemExit(0)
    recipe = Path(argv.pop(0)) if recipes and argv and not argv[0].startswith("-") else None
    known = {action.dest: action for action in parser._actions}
    from_recipe = _recipe_flags(recipe, known) if recipe else []
    argv = [_underscored(word) for word in argv]
    spelled = {option.removeprefix("--") for action in parser._actions for option in action.option_strings}
    _refuse_unknown(argv, spelled)
    _say_lists_twice(argv, known)
    values, rest = parser.parse_known_args(from_recipe + argv)
    if rest:
        raise FlagError("command line", " ".join(rest[:3]), "flags that begin with --")
    instances = tuple(_instance(group, vars(values)) for group in groups)
    return (*instances, recipe) if recipes else instances


def _instance(group: type, values: dict):
    try:
        return group(**{f.name: values[f.name] for f in dataclasses.fields(group) if f.init and f.name in values})
    except (ValueError, ImportError) as error:  # TrainingArguments checks itself: bf16 without support, and the like
        raise FlagError("the flags together", " ".join(str(error).split())[:300], "values that go together") from None


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _refuse_unknown(argv: Sequence[str], known: set[str]) -> None:
    for word in argv:
        name = word[2:].partition("=")[0]
        if word.startswith("--") and name not in known:
            found = f"an unknown flag{' of this trainer' if name in NOT_OURS else ''}{_why(name)}"
            raise FlagError(f"--{name}", found, "one that --help_all lists" + nearest(name, known))


def _say_lists_twice(argv: Sequence[str], known: dict[str, argparse.Action]) -> None:
    """Of a list that is given twice the last counts, as of any flag, where people may expect both."""
    given = [word[2:].partition("=")[0] for word in argv if word.startswith("--")]
    for name, action in known.items():
        if action.nargs in ("+", "*") and given.count(name) > 1 and os.environ.get("RANK", "0") == "0":
            said = f"note: --{name} is given {given.count(name)} times, and the last counts; for all: --{name} A B"
            print(said, file=sys.stderr)


def _why(name: str) -> str:
    return f" ({REASONS[name]})" if name in REASONS else ""


def _recipe_flags(recipe: Path, known: dict[str, argparse.Action]) -> list[str]:
    if not recipe.is_file():
        beside = [p.name for p in recipe.parent.glob("*.yaml")] if recipe.parent.is_dir() else []
        raise FlagError(f"recipe {recipe}", "no such file", "a .yaml recipe" + nearest(recipe.name, beside))
    keys = read_yaml(recipe, f"recipe {recipe}", "key: value lines") or {}
    if not isinstance(keys, dict):
        raise FlagError(f"recipe {recipe}", type(keys).__name__, "key: value lines")
    flags = []
    for key, value in keys.items():
        if key in FORMER:
            continue
        if key not in known:
            found = "an unknown key" + _why(str(key))
            raise FlagError(f"recipe {recipe}, key {key}", found, "a flag's name" + nearest(str(key), known))
        flags += _flag(key, value, known[key], recipe)
    return flags


def _flag(key: str, value: object, action: argparse.Action, recipe: Path) -> list[str]:
    """A recipe's key as words of a command line; none for a key without a value, where that is what it says."""
    place = f"recipe {recipe}, key {key}"
    if value is None or value == []:
        if action.default not in (None, []):  # it would be the default, where people mean nothing
            raise FlagError(place, "nothing", "a value, or no such key")
        return []
    beside = key == "deepspeed" and isinstance(value, str) and not Path(value).exists()
    if beside and (recipe.parent / value).exists():
        value = recipe.parent / value  # a recipe may name a file that lies beside it
    if value is False and key in WORDS:
        value = "no"  # YAML reads a bare no as false
    if not isinstance(value, list):
        return [f"--{key}={as_text(value, place)}"]
    if action.nargs not in ("+", "*") and len(value) > 1:
        raise FlagError(place, f"a list of {len(value)}", "one value")
    return [f"--{key}", *(as_text(one, place) for one in value)]


def _help(
    parser: argparse.ArgumentParser, groups: Sequence[type], everything: bool, recipes: bool, description: str
) -> str:
    usage = f"{Path(sys.argv[0]).name} [--flag value ...]"
    if recipes:
        usage = "finetune.sh [RECIPE.yaml] [--flag value ...]   flags override the recipe's keys"
    lines = [description.strip(), "", f"usage: {usage}", ""]
    actions = {action.dest: action for action in parser._actions}
    inherited = {f.name for f in dataclasses.fields(HfTrainingArguments)}
    for group in groups:
        lines.append(f"{(group.__doc__ or '').strip().splitlines()[0]}")
        own = group.__annotations__.keys() | EVERYDAY
        for f in dataclasses.fields(group):
            if f.name not in actions or not (everything or f.name in own or f.name not in inherited):
                continue
            action = actions[f.name]
            text = " ".join((action.help or "").replace("%%", "%").split())
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            if action.choices and not all(str(word) in text for word in action.choices):
                text += f" [{', '.join(map(str, action.choices))}]"
            shown = "" if default is None or "default:" in text else f" (default: {default})"
            lines.append(f"  --{f.name:<28} {text}{shown}")
        lines.append("")
    if recipes and not everything:
        lines.append("--help_all lists the Hugging Face Trainer's flags too. finetune.sh also takes --auto_retry:")
        lines.append("when memory runs out, go on by itself from the last checkpoint with half the budget.")
    return "\n".join(lines)


def require(holds: bool, place: str, found: str, expected: str) -> None:
    """Raise FlagError unless `holds`; keeps checks at the door one line each."""
    if not holds:
        raise FlagError(place, found, expected)
