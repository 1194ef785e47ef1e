"""Whole runs through the commands: interrupted and resumed, refused where they must be."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from commands import run, run_together, start
from one_step import tiny_encoder, trainer_class, trainer_module
from safetensors.torch import load_file
from test_reranker import tiny_reranker
from transformers import TrainerState

from koir import tokens
from koir.arguments import CacheArguments, EvaluationArguments, ModelArguments, TrainingArguments
from koir.encoder import load_encoder
from koir.errors import FlagError, RunError, exit_on_user_error
from koir.evaluation.pipeline import Pipeline, evaluate_first_stage
from koir.evaluation.tasks import load_task
from koir.flags import parse
from koir.retrieval.stages import in_memory
from koir.runs import command, encoders
from koir.runs.encoders import ENCODER
from koir.runs.folder import complete
from koir.runs.progress import Progress
from koir.runs.rerankers import RERANKER
from koir.triplets import load_triplets

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_encoder(dropout=0.1).save(folder)
    return folder


def as_typed(version, base, folder, *more):
    flags = ["--model_name_or_path", base, "--train_data", "demo", "--output_dir", folder, "--max_seq_length", "32"]
    flags += ["--per_device_train_batch_size", "70", "--save_steps", "4", "--learning_rate", "1e-3", *more]
    return [ROOT / version / "train.py", *map(str, flags)]


@pytest.mark.parametrize("version", ["v1", "v1.1"])
def test_killed_and_resumed_ends_in_the_same_weights(version, base, tmp_path):
    undisturbed = run(*as_typed(version, base, tmp_path / "whole"))
    assert undisturbed.returncode == 0, undisturbed.stderr[-2000:]
    process, deadline = start(*as_typed(version, base, tmp_path / "cut")), time.monotonic() + 120
    while not any(map(complete, (tmp_path / "cut").glob("checkpoints/*"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (tmp_path / "cut" / "run.json").exists()
    with pytest.raises(RunError, match="--resume_from_checkpoint last"):
        command.run(trainer_class(version), version, "", ENCODER, as_typed(version, base, tmp_path / "cut")[1:])
    resumed = run(*as_typed(version, base, tmp_path / "cut", "--resume_from_checkpoint", "last"))
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    whole, cut = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    files = [tmp_path / name / "metrics.jsonl" for name in ("whole", "cut")]
    steps = [[json.loads(line)["step"] for line in file.open()] for file in files]
    assert steps[0] == steps[1] == sorted(set(steps[0]))
    seconds = [json.loads(line)["seconds"] for line in files[1].open()]
    assert seconds == sorted(seconds)  # counted on after the interruption
    assert json.loads((tmp_path / "cut/run.json").read_text())["wall_seconds"] > seconds[-1]


@pytest.mark.parametrize(("version", "each"), [("v1", 16), ("v1.1", 16), ("v1.1", 64)])
def test_two_processes_train_on_what_one_does_to_the_last_row(version, each, tmp_path):
    """37 rows: of a pass's last batch each process has a part, and no row stands in it twice."""
    tiny_encoder(dropout=0.0).save(tmp_path / "base")
    lines = [{"query": f"{n}번째 질문은 무엇인가", "document": f"{n}번째 답은 {n * n}이다"} for n in range(37)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    weights, scores = [], []
    for processes in (1, 2):
        flags = {"model_name_or_path": tmp_path / "base", "train_data": rows, "max_seq_length": 32, "chunk_tokens": 90,
                 "num_train_epochs": 2, "learning_rate": "1e-2", "eval_tasks": "demo", "eval_steps": 2}  # fmt: skip
        flags |= {"per_device_train_batch_size": 2 * each // processes, "output_dir": tmp_path / str(processes)}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        done = run_together(ROOT / version / "train.py", processes, *words, "--use_cpu")
        assert done.returncode == 0, done.stderr[-3000:]
        weights.append(load_file(tmp_path / str(processes) / "model/model.safetensors"))
        told = json.loads((tmp_path / str(processes) / "run.json").read_text())
        weights[-1]["negatives"] = torch.tensor(told["negatives_per_query"])
        lines = map(json.loads, (tmp_path / str(processes) / "metrics.jsonl").open())
        scores.append([line["demo/ndcg_at_10"] for line in lines if "demo/ndcg_at_10" in line])
    assert len(scores[0]) > 1 and scores[0] == pytest.approx(scores[1], abs=0.005)
    assert all(torch.allclose(weights[1][name], weight, atol=1e-4) for name, weight in weights[0].items())


def test_numbers_that_json_has_not_are_null_in_metrics(base, tmp_path, monkeypatch):
    class Skipping(trainer_class("v1.1")):
        def log(self, logs, start_time=None):
            super().log(logs | ({"grad_norm": float("inf")} if "grad_norm" in logs else {}), start_time)

    words = as_typed("v1.1", base, tmp_path / "run", "--max_steps", "1")[1:]
    command.run(Skipping, "v1.1", "", ENCODER, words, CacheArguments)
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=lambda name: 1 / 0)["grad_norm"] is None


def test_a_batch_of_one_without_hard_negatives_is_refused(base, tmp_path):
    words = as_typed("v1.1", base, tmp_path / "run", "--max_steps", "1", "--per_device_train_batch_size", "1")[1:]
    with pytest.raises(FlagError, match="--per_device_train_batch_size: found 1, and no hard negatives"):
        command.run(trainer_class("v1.1"), "v1.1", "", ENCODER, [*words, "--max_hard_negatives", "0"], CacheArguments)


def test_another_optimizer_than_the_run_began_with_is_refused(base, tmp_path):
    words = as_typed("v1", base, tmp_path / "run", "--max_steps", "2", "--save_steps", "1")[1:]
    command.run(trainer_class("v1"), "v1", "", ENCODER, words)
    (tmp_path / "run/run.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/checkpoint-2")
    with pytest.raises(RunError, match="found --optim adafactor; expected adamw_torch.*, as the run began"):
        more = ["--resume_from_checkpoint", "last", "--optim", "adafactor"]
        command.run(trainer_class("v1"), "v1", "", ENCODER, [*words, *more])


def test_a_complete_run_has_its_parts_and_is_not_overwritten(base, tmp_path):
    done = run(
        *as_typed("v1.1", base, tmp_path / "run", "--eval_tasks", "demo", "--eval_steps", "6", "--max_steps", "6")
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "run"
    then = f"next:  .venv/bin/python evaluate.py --first_stage bm25 dense:{folder} --tasks demo\n"
    assert "nDCG@10" in done.stdout and then in done.stdout and "base" in done.stdout
    manifest = json.loads((folder / "run.json").read_text())
    wanted = {"command", "git", "versions", "hardware", "seed", "data_fingerprint", "rows", "negatives_per_query"}
    assert wanted | {"wall_seconds", "tokens_per_second", "peak_memory_bytes", "scores"} <= manifest.keys()
    assert 69 < manifest["negatives_per_query"] < 300
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds"} <= lines[1].keys()
    assert [line["step"] for line in lines if "demo/ndcg_at_10" in line] == [0, 6]
    of_base = evaluate_first_stage(
        in_memory(load_encoder(str(base), max_seq_length=32)), load_task("demo", "dev"), Pipeline("")
    )
    assert lines[0]["demo/ndcg_at_10"] == of_base.content["scores"]["dev"][0]["ndcg_at_10"]
    again = run(*as_typed("v1.1", base, folder))
    assert again.returncode == 2 and "never overwritten" in again.stderr and "Traceback" not in again.stderr
    repeated = run(ROOT / "v1.1/train.py", folder / "recipe.yaml", "--output_dir", tmp_path / "again")
    assert repeated.returncode == 0, repeated.stderr[-2000:]
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in (folder, tmp_path / "again")]
    assert weights[0] == weights[1]
    evaluated = run(ROOT / "evaluate.py", "--first_stage", "bm25", f"dense:{folder}",
                    "--output_dir", tmp_path / "results", "--json", tmp_path / "all.json")  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]
    (scored,) = (tmp_path / "results").glob("dense-run-*")
    result = json.loads((scored / "demo.json").read_text())
    assert result["scores"]["test"][0]["main_score"] == manifest["scores"]["demo"]["tuned"]["ndcg_at_10"]
    assert (scored / "run.json").exists()
    assert len(json.loads((tmp_path / "all.json").read_text())) == 2


def test_wandb_works_offline_when_named_and_no_secret_is_written_anywhere(base, tmp_path):
    offline = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    secrets = {
        name: f"secret{number}" * 6 for number, name in enumerate(("HF_TOKEN", "MILVUS_TOKEN", "OPENAI_API_KEY"))
    }
    secrets["WANDB_API_KEY"] = "5ec4e7" * 7
    words = as_typed("v1", base, tmp_path / "run", "--report_to", "wandb", "--max_steps", "1")
    done = run(*words, env=offline | secrets)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("wandb/offline-run-*"))
    written = {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and not file.is_symlink()}
    written |= {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    assert [
        (name, place) for name, secret in secrets.items() for place in written if secret.encode() in written[place]
    ] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--temprature", "1"], "did you mean temperature?"),
        (["--temperature", "0"], "--temperature"),
        (["--model_name_or_path", "intfloat/multilingual-e5-large"], "a reachable hub, or a local folder"),
        (["--train_data", "nlpai-lab/ko-triplet-v1.0"], "--train_data nlpai-lab/ko-triplet-v1.0"),
        (["--eval_tasks", "no-such-task"], "no-such-task"),
        (["--train_data", "no-such-file.jsonl"], "no such file"),
        (["--resume_from_checkpoint", "last"], "no complete checkpoint"),
        (["--eval_tasks", "demo", "a/demo"], "a/demo"),
        (["--report_to", "wandbb"], "--report_to wandbb: found an unknown name; expected none or wandb; did you mean"),
        (["--report_to", "tensorboard"], "--report_to tensorboard: found TensorBoardCallback requires"),
        (["--fp16", "--use_cpu"], "--fp16: found no GPU; expected --bf16"),
        (["--report_to", "wandb"], "expected WANDB_API_KEY, `wandb login`, or WANDB_MODE=offline"),
        (["--dataloader_drop_last", "true", "--per_device_train_batch_size", "2000"],
         "--dataloader_drop_last: found 840 rows, less than a batch of 2,000; expected at least one batch"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers: found -1; expected 0"),
        (["--debug", "underflow_overflow"], "an unknown flag of this trainer"),
        (["--no_temperature", "1"], "--no_temperature: found an unknown flag"),
        (["--load_best_model_at_end", "--save_steps", "2", "--eval_steps", "2", "--eval_tasks", "demo",
          "--metric_for_best_model", "demo/ndcg"], "found no dev score; expected one of demo/ndcg_at_10; did you mean"),
        (["--guide_model_name_or_path", ""], "--guide_model_name_or_path the model: found nothing"),
        (["--guide_model_name_or_path", "README.md"], "--guide_model_name_or_path README.md: found a file; expected a"),
        (["--auto_retry"], "--auto_retry: found an unknown flag (it is finetune.sh's alone, on its command line"),
        (["--optim", "adamw_bnb_8bit"], "--optim adamw_bnb_8bit: found "),
        (["--optim", "adalomo"], "--optim adalomo: found one that steps as soon as a chunk has its gradients"),
        (["--optim", "galore_adamw_layerwise"], "--optim galore_adamw_layerwise: found one that steps as soon as"),
        (["--optim", "schedule_free_adamw"], "--optim schedule_free_adamw: found one whose weights differ"),
        (["--eval_steps", "0"], "--eval_steps: found 0.0; expected above 0"),
        (["--save_total_limit", "0"], "--save_total_limit: found 0; expected 1 or more"),
        (["--eval_strategy", "epoch"], "--eval_strategy epoch: found no --eval_tasks"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_type cosine_with_min_lr: found "),
        *[([f"--{flag}", value], f"--{flag}: found {value}") for flag, value in (
            ("gradient_accumulation_steps", "0"), ("learning_rate", "-1.0"), ("adam_beta1", "1.5"), ("seed", "-1"),
            ("num_train_epochs", "0.0"), ("max_steps", "0"), ("logging_steps", "-1.0"))],
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line_and_status_2(base, tmp_path, capsys, monkeypatch, flags, said):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    main = exit_on_user_error(
        lambda: command.run(trainer_class("v1"), "v1", "", ENCODER, as_typed("v1", base, tmp_path / "run", *flags)[1:])
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line


def test_queries_of_a_task_among_the_rows_are_warned_of_and_so_are_negatives_that_are_not_used(base, tmp_path, capsys):
    task = load_task("demo")
    rows = [
        {"query": query, "document": text, "hard_negative": ["다른 글", "또 다른 글"]}
        for query, text in zip([*list(task.queries.values())[:3], "새 물음"], task.corpus.values(), strict=False)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    words = as_typed("v1", base, tmp_path / "run", "--train_data", file, "--eval_tasks", "demo", "--max_steps", "1",
                    "--max_hard_negatives", "1")[1:]  # fmt: skip
    command.run(trainer_class("v1"), "v1", "", ENCODER, words)
    said = capsys.readouterr().err
    assert "note:    4 of the rows' 8 hard negatives are not used, as --max_hard_negatives 1 says" in said
    assert "WARNING: 3 of the 200 queries of demo, test are among the rows: its scores will say too much" in said
    assert "queries of demo, dev" not in said


def test_ctrl_c_says_how_to_resume_once_there_is_a_checkpoint(base, tmp_path, monkeypatch, capsys):
    trainer, steps = trainer_class("v1"), []

    def step(self, *arguments, **more):
        steps.append(self.state.global_step)
        if steps[-1] == last:
            raise KeyboardInterrupt
        return before(self, *arguments, **more)

    before = trainer.training_step
    monkeypatch.setattr(trainer, "training_step", step)
    for last, there in ((1, False), (5, True)):
        folder = tmp_path / f"run{last}"
        with pytest.raises(KeyboardInterrupt):
            command.run(trainer, "v1", "", ENCODER, as_typed("v1", base, folder)[1:])
        said = f"\nresume with --output_dir {folder} --resume_from_checkpoint last\n"
        assert (said in capsys.readouterr().err) == there


def test_activation_checkpointing_lets_the_automatic_budget_keep_more(base, tmp_path):
    kept = []
    for more in ([], ["--activation_checkpointing", "true"]):
        words = as_typed("v1.1", base, tmp_path / f"run{len(kept)}", "--max_steps", "1", *more)[1:]
        folder = command.run(trainer_class("v1.1"), "v1.1", "", ENCODER, words, CacheArguments)
        kept.append(yaml.safe_load((folder / "recipe.yaml").read_text())["cache_keep_tokens"])
    assert kept[1] > 2 * kept[0]


def test_a_plateau_is_one_of_scores_that_rise(base, tmp_path, monkeypatch):
    trainer_class, found = trainer_module("v1").InfoNCETrainer, iter([0.1, 0.2, 0.3, 0.4, 0.1, 0.1])
    monkeypatch.setattr(trainer_class, "dev_scores", lambda self: {"demo/ndcg_at_10": next(found)})
    flags = ["--eval_tasks", "demo", "--eval_steps", "1", "--max_steps", "5", "--warmup_steps", "0"]
    flags += ["--lr_scheduler_type", "reduce_lr_on_plateau", "--lr_scheduler_kwargs", '{"patience": 0}']
    command.run(trainer_class, "v1", "", ENCODER, as_typed("v1", base, tmp_path / "run", *flags)[1:])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert rates[:4] == [1e-3] * 4 and rates[4] < 1e-3


def test_a_model_with_code_of_its_own_is_read_again_when_it_is_tuned(base, tmp_path, monkeypatch):
    told, load = [], encoders.load_encoder

    def loaded(path, *rest, trust_remote_code=False, **more):
        told.append((Path(path).name, trust_remote_code))
        return load(path, *rest, trust_remote_code=trust_remote_code, **more)

    monkeypatch.setattr(encoders, "load_encoder", loaded)
    monkeypatch.setattr("koir.training.load_encoder", loaded)
    kind = dataclasses.replace(ENCODER, load_saved=loaded)
    flags = ["--trust_remote_code", "true", "--tuned_share", "0.5", "--eval_tasks", "demo", "--max_steps", "1"]
    flags += ["--guide_model_name_or_path", base]
    command.run(trainer_class("v1"), "v1", "", kind, as_typed("v1", base, tmp_path / "run", *flags)[1:])
    assert len(told) >= 5 and all(trusted for _, trusted in told)


def test_without_a_bar_scores_and_warnings_are_lines(base, tmp_path, capsys):
    flags = ["--disable_tqdm", "true", "--max_steps", "1", "--eval_steps", "1", "--eval_tasks", "demo"]
    command.run(trainer_class("v1"), "v1", "", ENCODER, as_typed("v1", base, tmp_path / "run", *flags)[1:])
    said = capsys.readouterr().err
    assert "it/s" not in said and "step 1: demo/ndcg_at_10" in said


def test_what_training_cuts_is_said_for_encoders_and_rerankers(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "LOOKED_AT", 7)
    lines = [{"query": "휴가는?", "document": "연차 휴가를 준다. " * (40 if n % 2 else 1)} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    triplets = load_triplets([str(tmp_path / "rows.jsonl")])  # 2 pairs, the others are duplicates
    for kind, model, what in ((ENCODER, tiny_encoder(), "documents"), (RERANKER, tiny_reranker(tmp_path), "pairs")):
        model.max_seq_length = 1000
        for most, found in ((None, []), (40, [f"cut:     1 of 2 {what} looked at have more than 40 tokens"])):
            data = SimpleNamespace(train_max_seq_length=most)
            assert command._cut_lines(kind, model, triplets, {"data": data}) == found
        model.max_seq_length = 30
        (line,) = command._cut_lines(kind, model, triplets, {"data": SimpleNamespace(train_max_seq_length=None)})
        assert "more than 30 tokens" in line
    lines = [line | {"query": f"{n}일은?"} for n, line in enumerate(lines)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    triplets = load_triplets([str(tmp_path / "rows.jsonl")])
    (line,) = command._cut_lines(ENCODER, tiny_encoder(), triplets, {"data": data})
    assert "3 of 7 documents looked at" in line


def test_the_bar_of_a_resumed_run_begins_where_it_goes_on():
    progress, state = Progress(), TrainerState(global_step=90, max_steps=100)
    settings = SimpleNamespace(disable_tqdm=False)
    progress.on_train_begin(settings, state, None)
    state.global_step = 91
    progress.on_step_end(settings, state, None)
    assert (progress.training_bar.n, progress.training_bar.initial) == (91, 90)
    progress.close()


def test_a_tuned_model_that_is_worse_than_its_base_is_said_to_be(tmp_path, capsys):
    words = ["연차", "전세", "김치", "환승", "관성", "여권", "상속", "보증금", "측우기", "한라산", "퇴직금", "유산균"]
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": str(i), "text": f"{w} {w[::-1]}"}, ensure_ascii=False) for i, w in enumerate(words)]
    for name in ("corpus.jsonl", "queries.jsonl"):
        (task / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (task / "qrels" / "test.tsv").write_text("".join(f"{i}\t{i}\t1\n" for i in range(len(words))))
    broken = tiny_encoder()
    broken.transformer.embeddings.word_embeddings.weight.data.zero_()
    broken.save(tmp_path / "run" / "model")
    *groups, _ = parse([ModelArguments, EvaluationArguments, TrainingArguments], ["--eval_tasks", str(task)])
    groups = dict(zip(("model", "evaluation", "training"), groups, strict=True)) | {"held_out": [load_task(str(task))]}
    scores = encoders._base_against_tuned(tiny_encoder, groups, tmp_path / "run")
    assert scores["task"]["difference"] < 0 and scores["task"]["p"] < 0.05
    assert "WARNING: tuned is significantly worse than its base on task" in capsys.readouterr().out


def test_dev_scores_begin_with_the_base_and_a_worse_one_is_said_to_be(base, tmp_path, capsys, monkeypatch):
    trainer_class, found = trainer_module("v1").InfoNCETrainer, iter([0.5, 0.4, 0.6, 0.5, 0.3])
    monkeypatch.setattr(trainer_class, "dev_scores", lambda self: {"demo/ndcg_at_10": next(found)})
    flags = ["--eval_tasks", "demo", "--eval_steps", "1", "--save_steps", "3", "--max_steps", "3"]
    words = as_typed("v1", base, tmp_path / "run", *flags)[1:]
    command.run(trainer_class, "v1", "", ENCODER, words)
    said = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert said == ["WARNING: at step 1 demo/ndcg_at_10 is 0.400, worse than its base (0.500)"]
    (tmp_path / "run" / "run.json").unlink()
    more = ["--max_steps", "4", "--resume_from_checkpoint", "last"]
    command.run(trainer_class, "v1", "", ENCODER, [*words, *more])
    said = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert said == ["WARNING: at step 4 demo/ndcg_at_10 is 0.300, worse than its base (0.500)"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "demo/ndcg_at_10" in line] == [0, 1, 2, 3, 4]


def test_the_best_checkpoint_is_what_is_saved_when_asked_for(base, tmp_path):
    flags = [
        "--eval_tasks",
        "demo",
        "--eval_steps",
        "2",
        "--save_steps",
        "2",
        "--max_steps",
        "6",
        "--save_total_limit",
        "9",
    ]
    flags += ["--load_best_model_at_end", "--metric_for_best_model", "demo/ndcg_at_10"]
    words = as_typed("v1", base, tmp_path / "run", *flags)[1:]
    command.run(trainer_class("v1"), "v1", "", ENCODER, words)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    scores = {line["step"]: line["demo/ndcg_at_10"] for line in lines if line["step"] and "demo/ndcg_at_10" in line}
    best = max(scores, key=lambda step: (scores[step], -step))
    saved = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert saved == (tmp_path / "run" / "checkpoints" / f"checkpoint-{best}" / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="never overwritten"):
        checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
        command.run(trainer_class("v1"), "v1", "", ENCODER, [*words, "--resume_from_checkpoint", str(checkpoint)])


@pytest.mark.parametrize("version", ["v1", "v1.1"])
@pytest.mark.parametrize(("count", "steps"), [(5, 1), (9, 2)], ids=["fewer rows than a batch", "one row left"])
def test_a_batch_that_is_not_full_is_trained_on_as_it_is(version, count, steps, base, tmp_path):
    rows = [{"query": f"물음 {n}", "document": f"답 {n}"} for n in range(count)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    words = as_typed(version, base, tmp_path / "run", "--train_data", file, "--per_device_train_batch_size", "8")
    trainer_module(version).main(words[1:])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == steps and losses[0] > 0
    assert losses[1:] == [0.0] * (steps - 1)  # one query and one document: nothing to tell apart
