import ast
import contextlib
import dataclasses
from pathlib import Path

import pytest
import yaml
from one_step import trainer_module
from transformers import TrainingArguments as HfTrainingArguments

from koir import arguments
from koir.arguments import (
    CacheArguments,
    ChunkArguments,
    DataArguments,
    EvaluationArguments,
    LossArguments,
    ModelArguments,
    TrainingArguments,
)
from koir.errors import FlagError
from koir.flags import EVERYDAY, FORMER, NOT_OURS, REASONS, parse
from koir.runs import checks
from koir.runs import command as run_command
from koir.runs.averaging import WeightArguments
from koir.runs.folder import run_folder, write_recipe

ROOT = Path(__file__).resolve().parents[1]
KINDS = {
    "model": ModelArguments,
    "weights": WeightArguments,
    "data": DataArguments,
    "loss": LossArguments,
    "chunks": ChunkArguments,
    "evaluation": EvaluationArguments,
    "training": TrainingArguments,
}
RECIPES = sorted(ROOT.glob("v1/recipes/*.yaml")) + sorted(ROOT.glob("v1.1/recipes/*.yaml"))


def parsed(*argv):
    """Every group by name, as a run has them, and the recipe."""
    *instances, recipe = parse(list(KINDS.values()), list(argv))
    return dict(zip(KINDS, instances, strict=True)) | {"recipe": recipe}


@pytest.fixture
def recipe(tmp_path):
    def write(text, name="법률.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def refused(*argv):
    with pytest.raises(FlagError) as caught:
        parsed(*argv)
    return str(caught.value)


def test_a_list_given_twice_is_said_to_be(capsys):
    groups = parsed("--train_data", "a", "--seed", "1", "--train_data", "b", "c", "--seed", "2")
    assert "note: --train_data is given 2 times, and the last counts" in capsys.readouterr().err
    assert groups["data"].train_data == ["b", "c"]


@pytest.mark.parametrize("text", ["train_data:\n", "train_data: []\n"])
def test_a_key_without_a_value_is_not_the_default(recipe, text):
    assert "key train_data: found nothing; expected a value" in refused(recipe(text))


# --- precedence and spelling -----------------------------------------------------------------------------------------


def test_defaults_then_recipe_then_command_line(recipe):
    path = recipe("temperature: 0.05\nchunk_tokens: 512\n")
    assert parsed()["loss"].temperature == 0.02 and parsed()["recipe"] is None
    assert parsed(path)["loss"].temperature == 0.05
    groups = parsed(path, "--temperature", "0.1")
    assert (groups["loss"].temperature, groups["chunks"].chunk_tokens) == (0.1, "512")
    assert groups["recipe"] == Path(path)


@pytest.mark.parametrize("written", ["1e-5", "1.0e-5", "0.00001", "1E-05"])
def test_an_exponent_in_yaml_is_a_number(recipe, written):
    assert parsed(recipe(f"learning_rate: {written}\n"))["training"].learning_rate == 1e-5


@pytest.mark.parametrize("argv", [["--max-seq-length", "64"], ["--max-seq-length=64"], ["--max_seq_length=64"]])
def test_hyphens_and_equals_signs_are_accepted(argv):
    assert parsed(*argv)["model"].max_seq_length == 64


def test_hyphens_in_values_stay():
    groups = parsed("--train-data", "my-rows.jsonl", "--query-prompt=질의-응답: ")
    assert (groups["data"].train_data, groups["model"].query_prompt) == (["my-rows.jsonl"], "질의-응답: ")


@pytest.mark.parametrize("flag", ["--temp", "--chunk", "--learning", "--eval_task"])
def test_abbreviations_are_refused(flag):
    assert refused(flag, "1").startswith(f"{flag}: found an unknown flag; expected one that --help_all lists")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--temprature", "temperature"), ("--train-date", "train_data"), ("--learning_rat=1", "learning_rate")],
)
def test_an_unknown_flag_is_refused_with_the_nearest_name(typed, meant):
    name = typed.replace("-date", "_date").partition("=")[0]
    said = f"{name}: found an unknown flag; expected one that --help_all lists; did you mean {meant}?"
    assert refused(typed, "1") == said


def test_an_unknown_flag_like_no_other_gets_no_hint():
    assert refused("--zzzz", "1") == "--zzzz: found an unknown flag; expected one that --help_all lists"


def test_an_unknown_recipe_key_is_refused_with_the_nearest_name(recipe):
    path = recipe("temperatur: 0.1\n")
    said = f"recipe {path}, key temperatur: found an unknown key; expected a flag's name; did you mean temperature?"
    assert refused(path) == said


def test_words_without_a_flag_are_refused():
    assert refused("--temperature", "1", "a.yaml").startswith("command line: found a.yaml; expected flags")


@pytest.mark.parametrize("value", ["warm", "", "따뜻"])
def test_a_value_of_the_wrong_type_names_the_flag(value):
    assert refused("--temperature", value).startswith(f"--temperature: found invalid float value: {value!r}")


def test_a_choice_is_checked():
    assert refused("--pooling", "max").startswith("--pooling: found invalid choice: 'max'")


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "temperature: [", "a: b: c", "\tx: 1", "temperature: 0.1\n  pooling: cls", "{a: b}: c",
        "seed: !!bool x", "seed: !!float x", "output_dir: !!timestamp x", "seed: !!int ''", "output_dir: !!map x",
        pytest.param("seed: " + "9" * 5000, id="digits"), pytest.param("[" * 3000, id="depth"),
    ],
)  # fmt: skip
def test_broken_yaml_names_the_recipe(recipe, text):
    path = recipe(text)
    message = refused(path)
    assert message.startswith(f"recipe {path}: found broken YAML (") and "\n" not in message


@pytest.mark.parametrize("value", ["&a {b: *a}", "0x" + "f" * 5000], ids=["itself", "digits"])
def test_a_value_that_cannot_be_written_down_is_named_with_its_key(recipe, value):
    path = recipe(f"lr_scheduler_kwargs: {value}\n")
    assert refused(path).startswith(f"recipe {path}, key lr_scheduler_kwargs: found ")


def test_a_date_in_a_recipe_is_the_text_that_it_is_written_as(recipe):
    for day in ("2026-11-30", "2026-02-30", "2026-11-30 09:00:00"):
        args, _ = parse([TrainingArguments], [recipe(f"output_dir: {day}\nlr_scheduler_kwargs: {{a: {day}}}\n")])
        assert args.output_dir == day and args.lr_scheduler_kwargs == {"a": day}


def test_a_key_that_stands_twice_is_refused_with_both_lines(recipe):
    path = recipe("temperature: 0.1\nseed: 3\ntemperature: 0.2\n")
    assert refused(path).startswith(f"recipe {path}: found broken YAML (temperature again in line 3, first in line 1")


def test_what_is_neither_true_nor_false_is_said_in_few_words():
    assert refused("--bf16", "yess") == "--bf16: found yess; expected true or false"


def test_broken_utf8_in_a_recipe_is_named(tmp_path):
    (tmp_path / "a.yaml").write_bytes("query_prompt: 질의".encode("cp949"))
    assert "found broken YAML ('utf-8'" in refused(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(("text", "kind"), [("- temperature\n", "list"), ("그냥 글\n", "str"), ("3\n", "int")])
def test_a_recipe_is_keys_and_values(recipe, text, kind):
    assert refused(recipe(text)).endswith(f": found {kind}; expected key: value lines")


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}\n"])
def test_an_empty_recipe_is_the_defaults(recipe, text):
    assert parsed(recipe(text))["loss"] == LossArguments()


def test_a_missing_recipe_is_refused_with_the_nearest_name(recipe, tmp_path):
    recipe("", "koe5.yaml")
    said = f"recipe {tmp_path}/koe.yaml: found no such file; expected a .yaml recipe; did you mean koe5.yaml?"
    assert refused(str(tmp_path / "koe.yaml")) == said


def test_lists_dicts_nulls_and_bools_in_yaml(recipe):
    groups = parsed(
        recipe(
            "train_data: [가.jsonl, 나.parquet]\neval_tasks:\n- demo\nmax_seq_length: null\npooling: ~\n"
            "trust_remote_code: true\ndataloader_pin_memory: no\nlr_scheduler_type: cosine_with_min_lr\n"
            "lr_scheduler_kwargs: {min_lr: 1.0e-6}\nquery_prompt: ''\n"
        )
    )
    assert groups["data"].train_data == ["가.jsonl", "나.parquet"]
    assert groups["evaluation"].eval_tasks == ["demo"]
    assert (groups["model"].max_seq_length, groups["model"].pooling, groups["model"].query_prompt) == (None, None, "")
    assert groups["model"].trust_remote_code is True and groups["training"].dataloader_pin_memory is False
    assert groups["training"].lr_scheduler_kwargs == {"min_lr": 1e-6}


def test_one_word_may_stand_for_a_list(recipe):
    assert parsed(recipe("train_data: 가.jsonl\n"))["data"].train_data == ["가.jsonl"]


def test_a_list_on_the_command_line_replaces_the_recipes(recipe):
    groups = parsed(recipe("train_data: [가.jsonl, 나.jsonl]\n"), "--train_data", "다.jsonl")
    assert groups["data"].train_data == ["다.jsonl"]


def test_a_deepspeed_file_may_lie_beside_its_recipe(recipe, tmp_path):
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 0}}')
    argv = parse([_Deepspeed], [recipe("deepspeed: zero.json\n")])
    assert argv[0].deepspeed == str(tmp_path / "zero.json")


@dataclasses.dataclass
class _Deepspeed:
    """What names a file beside the recipe, without what DeepSpeed itself does with it."""

    deepspeed: str | None = None


def test_an_empty_list_is_a_value(recipe):
    assert parsed(recipe("eval_tasks: []\n"))["evaluation"].eval_tasks == []


def test_a_deepspeed_block_may_stand_in_the_recipe(recipe):
    (instance, _) = parse([_Deepspeed], [recipe("deepspeed: {zero_optimization: {stage: 0}}\n")])
    assert instance.deepspeed == '{"zero_optimization": {"stage": 0}}'


@pytest.mark.parametrize("key", ["save_strategy", "eval_strategy", "logging_strategy"])
def test_no_is_a_strategy(recipe, key):
    assert getattr(parsed(recipe(f"{key}: no\n"))["training"], key).value == "no"


def test_a_recipe_value_may_begin_with_a_hyphen(recipe):
    assert parsed(recipe("query_prompt: '-질의:'\n"))["model"].query_prompt == "-질의:"


# --- our defaults for the Trainer ------------------------------------------------------------------------------------


def test_eval_steps_alone_turns_evaluation_on(recipe):
    assert parsed()["training"].eval_strategy.value == "no"
    assert parsed("--eval_steps", "5")["training"].eval_strategy.value == "steps"
    assert parsed(recipe("eval_steps: 5\n"))["training"].eval_strategy.value == "steps"
    assert parsed("--eval_steps", "5", "--eval_strategy", "epoch")["training"].eval_strategy.value == "epoch"
    never = parsed(recipe("eval_steps: 5\n"), "--eval_strategy", "no")["training"]
    assert (never.eval_strategy.value, never.eval_steps) == ("no", None)


def test_a_list_for_what_has_one_value_is_refused(recipe):
    path = recipe("learning_rate: [1e-5, 2e-5]\n")
    assert refused(path).startswith(f"recipe {path}, key learning_rate: found a list of 2; expected one value")
    assert parsed(recipe("report_to:\n- wandb\n"))["training"].report_to == ["wandb"]  # as a run writes it


def test_nothing_is_reported_unless_asked():
    assert parsed()["training"].report_to == []


@pytest.mark.parametrize("flag", sorted(NOT_OURS))
def test_a_flag_that_would_do_nothing_is_refused(flag, recipe):
    why = f" ({REASONS[flag]})" if flag in REASONS else ""
    said = f"--{flag}: found an unknown flag of this trainer{why}; expected one that --help_all lists"
    assert refused(f"--{flag}", "1").startswith(said)
    path = recipe(f"{flag}: 1\n")
    if flag in FORMER:
        parsed(path)
        return
    assert refused(path).startswith(f"recipe {path}, key {flag}: found an unknown key{why}; expected a flag's name")


def test_every_flag_that_is_not_ours_is_one_of_the_trainers():
    assert NOT_OURS - {f.name for f in dataclasses.fields(HfTrainingArguments)} == set()
    assert REASONS.keys() - NOT_OURS == {"auto_retry"}


def helped(capsys, flag):
    with pytest.raises(SystemExit) as left:
        parse(list(KINDS.values()), ["--temperature", "1", flag], "벡터를 배운다")
    assert left.value.code == 0
    text = capsys.readouterr().out
    return text, {line.split()[0] for line in text.splitlines() if line.startswith("  --")}


def test_help_shows_our_flags(capsys):
    text, flags = helped(capsys, "--help")
    assert text.startswith("벡터를 배운다\n")
    own = {name for group in KINDS.values() for name in group.__annotations__} | EVERYDAY
    assert flags == {f"--{name}" for name in own} and "--help_all" in text
    for group in KINDS.values():
        assert group.__doc__.strip().splitlines()[0] in text


def test_help_names_the_words_that_a_flag_takes(capsys):
    text, _ = helped(capsys, "--help")
    (margin,) = [line for line in text.splitlines() if line.startswith("  --margin_type")]
    (batch,) = [line for line in text.splitlines() if line.startswith("  --batch_by")]
    assert "[absolute, relative]" in margin and "[random, source]" in batch


def test_help_all_shows_the_trainers_flags_too(capsys):
    _, ours = helped(capsys, "--help")
    _, everything = helped(capsys, "--help_all")
    assert ours < everything and {"--max_steps", "--seed", "--weight_decay"} <= everything
    assert {flag.removeprefix("--") for flag in everything} & NOT_OURS == set()
    _, short = helped(capsys, "-h")
    assert short == ours


@pytest.mark.parametrize("group", [*KINDS.values(), CacheArguments], ids=lambda group: group.__name__)
def test_every_flag_of_ours_has_a_help_text(group):
    fields = [f for f in dataclasses.fields(group) if f.name in group.__annotations__]
    assert [f.name for f in fields if not f.metadata.get("help")] == []


# --- the recipes that we ship ----------------------------------------------------------------------------------------


class Enough(Exception):
    """Stops a command once its arguments are parsed."""


@pytest.fixture
def command(monkeypatch):
    """Parse as v1/train.py and v1.1/train.py themselves do, and go no further."""

    def parse_as(version, argv):
        seen = []

        def parse_and_stop(*args):
            seen.append(parse(*args))
            raise Enough

        monkeypatch.setattr(run_command, "parse", parse_and_stop)
        monkeypatch.setattr(arguments, "be_the_only_process", lambda: None)  # later tests are not
        with contextlib.suppress(Enough):
            trainer_module(version).main(argv)
        return seen[0]

    return parse_as


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_shipped_recipe_parses(file, command):
    keys = yaml.safe_load(file.read_text(encoding="utf-8"))
    hardware = [word for key in ("bf16", "fp16", "tf32") if key in keys for word in (f"--{key}", "false")]
    *groups, recipe = command(file.parts[-3], [str(file), *hardware])  # what a GPU has, this machine may lack
    assert recipe == file
    values = {f.name: getattr(group, f.name) for group in groups for f in dataclasses.fields(group)}
    for key in ("model_name_or_path", "train_data", "per_device_train_batch_size", "temperature"):
        assert values[key] == keys[key]
    named = {name: group for name, group in zip(KINDS, groups, strict=False)}
    checks.check(named)


def test_each_version_has_its_demo_recipe():
    assert {"v1/recipes/demo.yaml", "v1.1/recipes/demo.yaml"} <= {str(file.relative_to(ROOT)) for file in RECIPES}


def test_compile_is_refused_where_there_is_no_gpu(tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        trainer_module("v1.1").main(["--compile", "--use_cpu", "--output_dir", str(folder)])
    assert "--compile: found no GPU" in capsys.readouterr().err and not folder.exists()


def test_cache_keep_tokens_is_for_v1_1_alone(command):
    *_, step, _ = command("v1.1", ["--cache_keep_tokens", "64"])
    assert step == CacheArguments("64")
    with pytest.raises(SystemExit) as left:
        command("v1", ["--cache_keep_tokens", "64"])
    assert left.value.code == 2


def test_the_recipe_a_run_writes_repeats_the_run(tmp_path):
    groups = parsed("--train_data", "가.jsonl", "나.jsonl", "--temperature", "0.07", "--learning_rate", "3e-4",
                    "--eval_tasks", "demo", "--eval_steps", "7", "--query_prompt", "질의: ", "--max_steps", "9",
                    "--output_dir", str(tmp_path))  # fmt: skip
    write_recipe(tmp_path, {name: groups[name] for name in KINDS} | {"dev_tasks": []})
    text = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert "query_prompt: '질의: '" in text
    again = parsed(str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path))
    for name in KINDS:
        if name != "training":
            assert again[name] == groups[name]
    assert again["training"].to_dict() == groups["training"].to_dict()


# --- contradictions --------------------------------------------------------------------------------------------------

CONTRADICTIONS = {
    "temperature 0": (["--temperature", "0"], "--temperature: found 0.0; expected above 0"),
    "temperature below 0": (["--temperature", "-0.1"], "--temperature: found -0.1; expected above 0"),
    "a temperature that is none": (["--temperature", "nan"], "--temperature: found nan; expected above 0"),
    "an endless temperature": (["--temperature", "inf"], "--temperature: found inf; expected above 0"),
    "an endless weight": (["--symmetric_weight", "inf"], "--symmetric_weight: found inf; expected 0 or more"),
    "a margin that is none": (
        ["--guide_model_name_or_path", "self", "--false_negative_margin", "nan"],
        "--false_negative_margin: found nan; expected a finite number",
    ),
    "a size's weight that is none": (
        ["--matryoshka_dimensions", "8", "4", "--matryoshka_weights", "1", "nan"],
        "--matryoshka_weights: found 1.0 nan; expected one above 0 for each dimension",
    ),
    "an endless teacher": (
        ["--distillation", "kl", "--teacher_temperature", "inf"],
        "--teacher_temperature: found inf; expected above 0",
    ),
    "an endless alpha": (["--lora_rank", "2", "--lora_alpha", "inf"], "--lora_alpha: found inf; expected above 0"),
    "a weight below 0": (["--symmetric_weight", "-1"], "--symmetric_weight: found -1.0; expected 0 or more"),
    "a margin of nobody's": (["--false_negative_margin", "0.1"], "--false_negative_margin: found no guide; expected"),
    "a kind of margin of nobody's": (["--margin_type", "relative"], "--false_negative_margin: found no guide"),
    "a weight of no term": (["--distillation_weight", "2"], "--distillation_weight: found no --distillation; expected"),
    "a teacher's weight 0": (
        ["--distillation", "kl", "--distillation_weight", "0"],
        "--distillation_weight: found 0.0",
    ),
    "a teacher without term": (["--teacher_temperature", "2"], "--teacher_temperature: found no --distillation"),
    "a size twice": (["--matryoshka_dimensions", "8", "8"], "--matryoshka_dimensions: found 8 8; expected different"),
    "a size of 0": (["--matryoshka_dimensions", "0"], "--matryoshka_dimensions: found 0; expected different numbers"),
    "weights of no sizes": (["--matryoshka_weights", "1"], "--matryoshka_weights: found 1.0; expected one above 0 for"),
    "alpha of no sources": (["--source_alpha", "0.5"], "--source_alpha: found --batch_by random; expected --batch_by"),
    "alpha above 1": (["--batch_by", "source", "--source_alpha", "2"], "--source_alpha: found 2.0; expected 0 ("),
    "rank 0": (["--lora_rank", "0"], "--lora_rank: found 0; expected at least 1"),
    "alpha without rank": (["--lora_alpha", "8"], "--lora_alpha: found no --lora_rank; expected --lora_rank too"),
    "targets without rank": (["--lora_targets", "query"], "--lora_targets: found no --lora_rank; expected --lora_rank"),
    "no chunk tokens": (["--chunk_tokens", "0"], "--chunk_tokens: found 0; expected auto or a whole number from 1"),
    "negative hard negatives": (["--max_hard_negatives", "-1"], "--max_hard_negatives: found -1; expected 0 or more"),
    "length below special tokens": (["--max_seq_length", "7"], "--max_seq_length: found 7; expected at least 8 tokens"),
    "eval steps, no tasks": (["--eval_steps", "5"], "--eval_steps: found no --eval_tasks; expected --eval_tasks with"),
    "eval each epoch, no tasks": (
        ["--eval_strategy", "epoch"],
        "--eval_strategy epoch: found no --eval_tasks; expected",
    ),
    "a split of no tasks": (["--eval_split", "dev"], "--eval_split: found no --eval_tasks; expected --eval_tasks too"),
}


@pytest.mark.parametrize(("argv", "said"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_contradiction_is_refused(argv, said):
    with pytest.raises(FlagError) as caught:
        checks.check(parsed(*argv))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("nothing", [[], None])
def test_nothing_to_learn_from_is_refused(nothing):
    groups = parsed()
    groups["data"].train_data = nothing
    with pytest.raises(FlagError, match="--train_data: found nothing; expected at least one file, hub name or demo"):
        checks.check(groups)


@pytest.mark.parametrize(
    "argv",
    [[], ["--eval_tasks", "demo"], ["--eval_tasks", "demo", "--eval_steps", "5"], ["--max_hard_negatives", "0"]],
    ids=" ".join,
)
def test_what_goes_together_is_let_through(argv):
    checks.check(parsed(*argv))


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(FlagError):
        checks.check(parsed("--per_device_train_batch_size", "0"))


def test_what_the_trainer_refuses_is_a_flag_error():
    message = refused("--load_best_model_at_end", "true", "--eval_strategy", "no")
    assert message.startswith("the flags together: found ") and "\n" not in message


def test_without_output_dir_a_run_goes_under_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KOIR_STARTED", "20260101-000000")
    folder, checkpoint = run_folder(parsed()["training"], "v1.1-demo")
    assert (folder, checkpoint) == ("outputs/v1.1-demo-20260101-000000", None)


# --- no flag without effect ------------------------------------------------------------------------------------------


def names_read():
    """Names that appear as attributes outside arguments.py."""
    files = [*ROOT.glob("koir/**/*.py"), *ROOT.glob("v1*/train.py"), *ROOT.glob("reranker/train.py")]
    trees = [ast.parse(f.read_text(encoding="utf-8")) for f in files if f.name != "arguments.py"]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_field_of_ours_is_read_somewhere():
    groups = [g for g in vars(arguments).values() if dataclasses.is_dataclass(g) and g.__module__ == "koir.arguments"]
    assert len(groups) >= 7
    inherited = {f.name for f in dataclasses.fields(HfTrainingArguments)}  # the Trainer reads those itself
    own = {name for group in groups for name in group.__annotations__ if name not in inherited}
    assert own - names_read() == set()
