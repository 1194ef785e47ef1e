"""What is read and refused before training begins; contradictions of flags are in test_arguments.py."""

import shutil
from types import SimpleNamespace

import pytest

from koir.arguments import EvaluationArguments
from koir.errors import FlagError, TaskError
from koir.manifest import DEMO
from koir.runs.checks import choose_metric, read_tasks
from koir.runs.command import _tasks_flags


def test_tasks_of_one_name_are_refused(tmp_path):
    for place in "ab":
        (tmp_path / place).mkdir()
        shutil.copytree(DEMO / "beir", tmp_path / place / "legal")
    tasks = [str(tmp_path / place / "legal") for place in "ab"]
    with pytest.raises(FlagError, match="two tasks named legal"):
        read_tasks(EvaluationArguments(eval_tasks=tasks))


def test_the_last_table_is_of_test_or_dev_before_any_other_split(tmp_path, capsys):
    task = shutil.copytree(DEMO / "beir", tmp_path / "task")
    for gone, split, said in ((None, "test", ""), ("test", "dev", "of dev\n"), ("dev", "train", "of train\n")):
        if gone:
            (task / "qrels" / f"{gone}.tsv").unlink()
        (of_training,), (last,) = read_tasks(EvaluationArguments(eval_tasks=[str(task)]))
        assert last.split == split and last.corpus is of_training.corpus, "read once"
        assert capsys.readouterr().err.endswith(
            said and f"note: {task} has no test split; the last table will be {said}"
        )


def test_what_is_best_needs_a_score_and_is_by_default_the_mean(capsys):
    task, other = SimpleNamespace(name="demo", split="dev"), SimpleNamespace(name="x", split="dev")
    last = [SimpleNamespace(name="demo", split="test"), SimpleNamespace(name="x", split="test")]
    args = SimpleNamespace(lr_scheduler_type="linear", metric_for_best_model=None, save_strategy="best")
    with pytest.raises(FlagError, match="found no --eval_tasks"):
        choose_metric(args, [], [], None)
    choose_metric(args, [task, other], last, None)
    assert (args.metric_for_best_model, args.greater_is_better) == ("mean/ndcg_at_10", True)
    args = SimpleNamespace(lr_scheduler_type="linear", metric_for_best_model=None, save_strategy="steps")
    choose_metric(args, [task], last[:1], None)
    assert args.metric_for_best_model is None


@pytest.mark.parametrize("schedule", ["linear", "greedy"])
def test_nothing_is_chosen_on_what_the_last_table_is_of(schedule):
    dev, test = SimpleNamespace(name="demo", split="dev"), SimpleNamespace(name="law", split="test")
    last = [SimpleNamespace(name="demo", split="test"), SimpleNamespace(name="law", split="test")]

    def choose(metric, split=None):
        args = SimpleNamespace(lr_scheduler_type=schedule, metric_for_best_model=metric, save_strategy="best")
        args.lr_scheduler_kwargs = None
        choose_metric(args, [dev, test], last, split)

    for metric in ("law/ndcg_at_10", "mean/ndcg_at_10", None):
        with pytest.raises(FlagError, match="--eval_tasks law: found scores of test to choose by"):
            choose(metric)
        choose(metric, split="test")
    if schedule == "linear":
        choose("demo/ndcg_at_10")


def test_a_broken_test_split_shows_before_training(tmp_path):
    task = shutil.copytree(DEMO / "beir", tmp_path / "task")
    with (task / "qrels/test.tsv").open("a") as lines:
        lines.write("nobody\tnothing\t1\n")
    with pytest.raises(TaskError, match="test.tsv"):
        read_tasks(EvaluationArguments(eval_tasks=[str(task)]))


def test_the_command_that_is_named_at_the_end_names_a_split_that_is_there():
    def flags(*splits):
        groups = {"evaluation": EvaluationArguments(eval_tasks=["a", "b"][: len(splits)])}
        return _tasks_flags(groups | {"held_out": [SimpleNamespace(split=split) for split in splits]})

    assert flags("test", "test") == ["--tasks", "a", "b"] and flags() == []
    assert flags("dev", "dev") == ["--tasks", "a", "b", "--split", "dev"]
    assert flags("dev", "test") == ["--tasks", "b"] and flags("dev", "train") == []
