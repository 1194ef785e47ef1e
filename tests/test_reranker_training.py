"""Reranker training: groups, exact gradients however a step is cut, and the command from rows to a table."""

import json
import os
import re

import pytest
import torch
from commands import ROOT, run_together, saved_by
from one_step import trainer_module
from test_reranker import tiny_reranker
from torch.nn import functional
from transformers import TrainerCallback

from koir.arguments import CacheArguments, ChunkArguments, TrainingArguments
from koir.errors import FlagError, RowError
from koir.evaluation.tasks import Task
from koir.groups import Curriculum, Groups, PairCollator, mine_groups
from koir.losses import kl_divergence
from koir.ranking_losses import binary_cross_entropy, cross_entropy, squared_error
from koir.reranker_arguments import (
    GroupArguments,
    RankingLossArguments,
    RerankingArguments,
    check_together,
)
from koir.retrieval.stages import first_stage
from koir.runs.rerankers import _report, _scored
from koir.triplets import load_triplets, text_hash

LOSSES = ["cross_entropy", "binary_cross_entropy", "mse", "kl"]


@pytest.fixture(scope="module")
def trainer():
    return trainer_module("reranker")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """12 rows with teacher's scores; row i has 1 to 3 hard negatives, texts of many lengths."""
    file = tmp_path_factory.mktemp("scored") / "rows.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for i in range(12):
            negatives = [f"다른 답 {i} {j} " * (1 + 3 * j + i % 4) for j in range(1 + i % 3)]
            row = {"query": f"물음 {i}", "document": f"바른 답 {i} " * (1 + 5 * (i % 3)), "hard_negative": negatives}
            row |= {"document_score": 3.0 - i / 7, "hard_negative_score": [-1.5 + j + i / 9 for j in range(1 + i % 3)]}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file


class Grab(TrainerCallback):
    gradients = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def step(trainer, rows, folder, loss, chunk_tokens=120, keep=0, dropout=0.0, accumulation=1, batch=6, **data):
    """name -> gradient after one optimisation step of reranker/train.py, in float64, and the trainer."""
    settings = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    base = folder / f"base-{os.environ.get('RANK', 0)}"
    reranker = tiny_reranker(base, **settings).double()
    args = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        max_steps=1, max_grad_norm=0.0, use_cpu=True, save_strategy="no", seed=3, disable_tqdm=True,
    )  # fmt: skip
    groups = {
        "loss": RankingLossArguments(loss=loss),
        "data": GroupArguments(train_data=[str(rows)], **({"group_size": 4} | data)),
        "chunks": ChunkArguments(chunk_tokens=chunk_tokens),
        "step": CacheArguments(cache_keep_tokens=keep),
        "evaluation": RerankingArguments(),
        "dev_tasks": [],
    }
    torch.manual_seed(5)
    ours = trainer.ChunkedTrainer(reranker, args, load_triplets([str(rows)]), groups)
    grab = Grab()
    ours.add_callback(grab)
    ours.train()
    return grab.gradients, ours


def plain(ours, folder, loss, batch):
    """The same gradients by one forward of all groups, each padded to the whole batch's width, and autograd."""
    reranker = tiny_reranker(folder / "base-0").double().eval()
    groups = [ours.train_dataset[key] for key in list(ours._get_train_sampler())[:batch]]
    pairs = [(group["query"], document) for group in groups for document in group["documents"]]
    (chunk,), inverse, _ = reranker.chunks(pairs, 10**9)
    scores = reranker([chunk])[inverse]
    sizes, total, start = [len(group["documents"]) for group in groups], 0.0, 0
    for group, size in zip(groups, sizes, strict=True):
        own = scores[start : start + size]
        start += size
        teacher = torch.tensor(group["teacher"], dtype=torch.float64)
        right = torch.eye(size, dtype=torch.float64)[0]
        total = (
            total
            + {
                "cross_entropy": lambda own=own: -own.log_softmax(0)[0],
                "binary_cross_entropy": lambda own=own, right=right: functional.binary_cross_entropy_with_logits(
                    own, right
                ),
                "mse": lambda own=own, teacher=teacher: (own - teacher).square().mean(),
                "kl": lambda own=own, teacher=teacher: (
                    teacher.softmax(0) * (teacher.log_softmax(0) - own.log_softmax(0))
                ).sum(),
            }[loss]()
        )
    (total / len(groups)).backward()
    return {name: p.grad for name, p in reranker.named_parameters() if p.grad is not None}


def assert_equal(found, expected):
    every = torch.cat([g.flatten() for g in expected.values()]).norm()
    assert found.keys() == expected.keys() and every > 0
    for name, gradient in expected.items():
        off = (found[name] - gradient).norm()
        # targets are float32, so agreement ends at their last digit
        assert off <= 1e-6 * max(gradient.norm(), 1e-3 * every), (name, off)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("keep", [0, 150])
def test_a_step_in_chunks_has_the_gradients_of_the_whole_batch(trainer, scored, tmp_path, loss, keep):
    found, ours = step(trainer, scored, tmp_path, loss, keep=keep)
    assert_equal(found, plain(ours, tmp_path, loss, 6))


@pytest.mark.parametrize("loss", LOSSES)
def test_accumulated_batches_have_the_gradients_of_one(trainer, scored, tmp_path, loss):
    whole, _ = step(trainer, scored, tmp_path / "a", loss, batch=6)
    parts, _ = step(trainer, scored, tmp_path / "b", loss, batch=2, accumulation=3)
    assert_equal(parts, whole)


def test_two_processes_have_the_gradients_of_one(trainer, scored, tmp_path):
    (tmp_path / "two").mkdir()
    settings = {"rows": str(scored), "loss": "cross_entropy", "batch": 3}
    two = saved_by("reranker_run.py", 2, tmp_path / "two" / "gradients.pt", settings)
    one, ours = step(trainer, scored, tmp_path / "one", "cross_entropy", batch=6)
    assert_equal(two["gradients"], one)
    counted = ("negatives", "negatives_per_query", "random_negatives", "steps")
    assert all(two["facts"][name] == ours.facts()[name] for name in counted) and ours.facts()["negatives"] > 6
    assert not torch.equal(*two["states"]), "each draws dropout of its own"


@pytest.mark.parametrize("loss", ["cross_entropy", "kl"])
def test_with_dropout_replayed_chunks_have_the_gradients_of_kept_ones(trainer, scored, tmp_path, loss):
    kept, _ = step(trainer, scored, tmp_path / "a", loss, dropout=0.3, keep=10**6)
    for name, keep in (("b", 0), ("c", 150)):
        replayed, _ = step(trainer, scored, tmp_path / name, loss, dropout=0.3, keep=keep)
        assert_equal(replayed, kept)
    still, _ = step(trainer, scored, tmp_path / "d", loss)
    assert any((still[name] - kept[name]).norm() > 1e-3 * still[name].norm() for name in kept)


def test_losses_by_hand():
    scores = torch.tensor([[2.0, 0.0, 9.0], [1.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    there = torch.tensor([[True, True, False], [True, True, True]])
    expected = -torch.log(torch.sigmoid(torch.tensor(2.0, dtype=torch.float64))) + torch.log(torch.tensor(3.0))
    assert torch.isclose(cross_entropy(scores, there), expected)
    assert torch.autograd.grad(cross_entropy(scores, there), scores)[0][0, 2] == 0
    flat, target, weight = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.5])
    assert torch.isclose(binary_cross_entropy(flat, target, weight), torch.tensor(0.693147 + 0.5 * 2.126928))
    assert squared_error(flat, target, weight) == 1 + 0.5 * 4
    teacher = scores.detach().clone()
    assert abs(kl_divergence(scores, teacher, there)) < 1e-12


def test_groups_never_hold_a_right_answer_twice_and_are_filled_up(rows):
    triplets = load_triplets([str(rows)])
    right = {}
    for pair in triplets.pairs:
        right.setdefault(pair["query"], set()).update(pair["right_answers"])
    groups = Groups(triplets.pairs, 4, seed=1)
    for number, pair in enumerate(triplets.pairs):
        for early in (False, True):
            group = groups[number, 0, early]
            hashes = [text_hash(text) for text in group["documents"]]
            assert group["documents"][0] == pair["document"] and len(set(hashes)) == len(hashes) == 4
            assert not right[pair["query"]] & set(hashes[1:])
            usable = {text_hash(t) for t in pair["hard_negatives"]} - right[pair["query"]]
            assert group["filled"] == (3 if early else 3 - min(3, len(usable)))
        assert groups[number, 0, False] == groups[number, 0, False]
    drawn = {tuple(groups[0, epoch, True]["documents"]) for epoch in range(8)}
    assert len(drawn) > 1


def test_a_hard_negative_listed_twice_is_drawn_once(tmp_path):
    row = {"query": "물음", "document": "바른 답", "hard_negative": ["같은 오답", "같은 오답", "다른 오답"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    for epoch in range(8):
        group = Groups(load_triplets([str(tmp_path / "rows.jsonl")]).pairs, 4, 0, fill=False)[0, epoch, False]
        assert sorted(group["documents"][1:]) == ["같은 오답", "다른 오답"]


def test_negatives_are_drawn_anew_for_each_seed_row_and_epoch(scored):
    pairs = load_triplets([str(scored)]).pairs
    mined = [[*(f"찾은 글 {number}" for number in range(9)), pairs[0]["document"]]] * 12

    def drawn(seed=1, row=0, epoch=0, early=False):
        return Groups(pairs, 4, seed, mined)[row, epoch, early]

    for name in ("seed", "row", "epoch"):
        assert len({tuple(drawn(**{name: number})["documents"][1:]) for number in range(9)}) > 1
    early = [text for epoch in range(40) for text in drawn(epoch=epoch, early=True)["documents"]]
    assert set(early) == set(pairs["document"])  # all of them, and nothing that was mined
    assert not any(pairs[0]["document"] in drawn(epoch=epoch)["documents"][1:] for epoch in range(40))
    assert drawn()["teacher"] == [pairs[0]["document_score"]]  # what was mined has no scores


def test_each_negative_keeps_its_score(scored):
    pairs = load_triplets([str(scored)]).pairs
    for number, pair in enumerate(pairs):
        told = dict(zip(pair["hard_negatives"], pair["hard_negative_scores"], strict=True))
        for epoch in range(3):
            group = Groups(pairs, 3, seed=1, fill=False)[number, epoch, False]
            assert group["teacher"] == [pair["document_score"], *(told[text] for text in group["documents"][1:])]


def test_the_curriculum_turns_at_its_share_of_all_rows():
    keys = [key for epoch in (0, 1) for key in Curriculum(10, 7, lambda epoch=epoch: epoch, 0.7, lambda: 20)]
    assert [early for _, _, early in keys] == [True] * 14 + [False] * 6
    assert [epoch for _, epoch, _ in keys] == [0] * 10 + [1] * 10
    assert sorted(row for row, epoch, _ in keys if epoch == 1) == list(range(10))
    assert list(Curriculum(10, 7, lambda: 0, 0.0, lambda: 20)) != list(Curriculum(10, 8, lambda: 0, 0.0, lambda: 20))


def test_negatives_come_from_a_first_stages_candidates(tmp_path, monkeypatch):
    monkeypatch.setattr("koir.groups.BLOCK", 3)
    extra = "휴가에 찌개를 끓인다."
    file = tmp_path / "rows.jsonl"
    texts = [
        "연차 휴가는 15일이다.",
        "연차 휴가 신청서 양식을 내려받는다.",
        "김치는 유산균이 만든다.",
        "김치찌개 끓이는 방법",
    ]
    lines = [{"query": "연차 휴가는 15일인가요?", "document": texts[0]}, {"query": "유산균", "document": texts[2]}]
    lines += [
        {"query": "양식 내려받기", "document": texts[1]},
        {"query": "찌개 끓이는 방법", "document": texts[3], "hard_negative": extra},
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    pairs = load_triplets([str(file)]).pairs
    stage = first_stage("bm25", index_uri=str(tmp_path / "index"), progress=False)
    mined, statistics = mine_groups(pairs, stage, 10, 0.95)
    assert mined[:2] == [[texts[1], extra], []] and len(mined) == statistics.counts["rows"] == 4
    for depth, ratio in ((1, 0.95), (10, 0.01)):
        assert mine_groups(pairs, stage, depth, ratio)[0][0] == []
    monkeypatch.setattr("koir.groups.KEPT", 1)
    assert [len(mine_groups(pairs, stage, 10, 0.95, size)[0][0]) for size in (2, 3)] == [1, 2]
    groups = Groups(pairs, 2, seed=0, mined=mined)
    assert len(groups[0, 0, False]["documents"]) == 2 and groups[0, 0, False]["filled"] == 0
    document, *negatives = Groups(pairs, 3, seed=0, mined=mined)[0, 0, False]["documents"]
    assert document == groups[0, 0, False]["documents"][0] == texts[0] and set(negatives) == {texts[1], extra}
    assert groups[0, 0, False]["documents"][1] in negatives
    assert groups[1, 0, False]["documents"][0] == texts[2] and groups[1, 0, False]["filled"] == 1


def test_the_collator_finds_each_score_again(scored, tmp_path):
    reranker = tiny_reranker(tmp_path).eval()
    groups = Groups(load_triplets([str(scored)]).pairs, 4, seed=0, fill=False)
    chosen = [groups[row, 0, False] for row in range(5)]
    batch = PairCollator(reranker, 90, taught=True)(chosen)
    with torch.no_grad():
        scores = reranker(batch["chunks"])
    for group, column, there, teacher in zip(chosen, batch["column"], batch["there"], batch["teacher"], strict=True):
        own = reranker.score([(group["query"], document) for document in group["documents"]])
        assert torch.allclose(scores[column][there], torch.tensor(own), atol=1e-5)
        assert torch.allclose(teacher[there], torch.tensor(group["teacher"]))
    place = batch["column"][batch["there"]]
    flat = torch.tensor(sum((group["teacher"] for group in chosen), []))
    assert torch.allclose(batch["target"][place], flat)
    sizes = torch.tensor([2, 3, 4, 2, 3])
    assert torch.allclose(batch["weight"][place], (1 / sizes).repeat_interleave(sizes))
    assert (batch["negatives"], batch["filled"]) == (9, 0)
    assert batch["tokens"] == sum(int(chunk["attention_mask"].sum()) for chunk in batch["chunks"])
    batch = PairCollator(reranker, 90, taught=False)(
        [Groups(groups.rows, 4, seed=0)[row, 0, False] for row in range(5)]
    )
    assert (batch["negatives"], batch["filled"], batch["target"].sum()) == (15, 2 + 1 + 0 + 2 + 1, 5)
    assert torch.equal(batch["target"][batch["column"][:, 0]], torch.ones(5))


def test_training_reads_less_of_a_pair_where_told_and_the_saved_model_does_not(scored, tmp_path):
    reranker = tiny_reranker(tmp_path)
    chosen = [Groups(load_triplets([str(scored)]).pairs, 4, seed=0)[row, 0, False] for row in range(5)]
    read = {
        longest: PairCollator(reranker, 10**6, False, longest)(chosen)["chunks"][0]["input_ids"].shape[1]
        for longest in (None, 24, 10**6)
    }
    assert read[24] == 24 < read[None] == read[10**6] and reranker.max_seq_length == 128


@pytest.mark.parametrize(
    ("loss", "data", "said"),
    [
        ("mse", {"negatives_from": "bm25"}, "--loss mse"),
        ("kl", {"random_negatives_until": 0.5}, "--loss kl"),
        ("cross_entropy", {"group_size": 1}, "--group_size"),
        ("cross_entropy", {"random_negatives_until": 1.5}, "--random_negatives_until"),
        ("cross_entropy", {"max_ratio": 0.5}, "--max_ratio"),
        ("cross_entropy", {"train_max_seq_length": 4}, "--train_max_seq_length"),
    ],
)
def test_contradictions_are_refused(loss, data, said):
    groups = {
        "loss": RankingLossArguments(loss=loss),
        "data": GroupArguments(**data),
        "evaluation": RerankingArguments(),
    }
    with pytest.raises(FlagError, match=said):
        groups["data"].check()
        check_together(groups)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--loss", "mse", "--negatives_from", "bm25"], "--loss mse"),
        (["--negatives_from", "bm52"], "--negatives_from bm52: .* did you mean bm25"),
        (["--first_stage", "dens:x"], "--first_stage dens:x: .* did you mean dense"),
        (["--eval_depth", "0"], "--eval_depth"),
    ],
)
def test_contradictions_are_refused_before_anything_loads(trainer, tmp_path, flags, said, capsys):
    with pytest.raises(SystemExit):
        trainer.main([*flags, "--model_name_or_path", str(tmp_path / "none"), "--output_dir", str(tmp_path / "run")])
    assert re.match(f"error: {said}", capsys.readouterr().err) and not (tmp_path / "run").exists()


def test_rows_without_a_teachers_scores_are_refused(trainer, rows, tmp_path):
    with pytest.raises(RowError, match="without a teacher's scores"):
        step(trainer, rows, tmp_path, "mse")


@pytest.fixture
def task(tmp_path):
    """A folder of 12 documents, each the answer to a query of the same words, in dev and in test."""
    words = ["연차", "전세", "김치", "환승", "관성", "여권", "상속", "측우기", "한라산", "퇴직금", "유산균", "보증금"]
    folder = tmp_path / "task"
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        lines = [
            json.dumps({"_id": str(i), "text": f"{w} {w[::-1]} 규정"}, ensure_ascii=False) for i, w in enumerate(words)
        ]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split in ("dev", "test"):
        (folder / "qrels" / f"{split}.tsv").write_text("".join(f"{i}\t{i}\t1\n" for i in range(len(words))))
    return folder


def test_two_processes_find_the_negatives_and_dev_scores_of_one(scored, task, tmp_path):
    tiny_reranker(tmp_path / "base")
    flags = {"model_name_or_path": tmp_path / "base", "train_data": scored, "group_size": 3, "max_steps": 1,
             "negatives_from": "hybrid:demo", "eval_tasks": task, "eval_steps": 1, "eval_depth": 5,
             "max_seq_length": 32}  # fmt: skip
    zero3 = ["--deepspeed", ROOT / "v1.1/recipes/zero3.json"]  # which splits what is loaded, but for first stages
    found = []
    for name, processes, more in (("one", 1, []), ("two", 2, []), ("split", 2, zero3)):
        own = {"output_dir": tmp_path / name, "per_device_train_batch_size": 4 // processes}
        words = [word for flag, value in (flags | own).items() for word in (f"--{flag}", value)]
        done = run_together(ROOT / "reranker/train.py", processes, *words, "--use_cpu", *more)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("mined:  ") == 1
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").open())
        scores = [line["task/ndcg_at_10"] for line in lines if "task/ndcg_at_10" in line]
        found.append((json.loads((tmp_path / name / "run.json").read_text())["mining"], scores))
    (mined, scores), *others = found
    assert mined["rows"] == 12 and len(scores) == 2
    for other in others:
        assert other == (mined, pytest.approx(scores, abs=0.002))


def test_the_command_goes_from_rows_to_a_table(trainer, task, tmp_path, capsys):
    from sentence_transformers import CrossEncoder

    tiny_reranker(tmp_path / "base")
    flags = {"model_name_or_path": tmp_path / "base", "group_size": 3, "max_steps": 3, "per_device_train_batch_size": 4,
             "eval_tasks": task, "eval_depth": 5, "eval_steps": 2, "output_dir": tmp_path / "run", "max_seq_length": 32,
             "random_negatives_until": 0.5}  # fmt: skip
    trainer.main([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (run["kind"], run["steps"], run["negatives_per_query"]) == ("reranker", 3, 2.0)
    found = run["scores"]["task"]
    assert found["first_stage"]["ndcg_at_10"] == 1.0 and found["to_first_stage"]["against"] == "bm25"
    out, err = capsys.readouterr()
    assert "WARNING: at step 3 task/ndcg_at_10 is " in err and "worse than its own first stage (1.000)" in err
    assert "WARNING: at step 0" not in err
    assert "12 queries, 12 documents, 5 candidates" in out and "base (" in out and "tuned to bm25" in out
    assert "WARNING: tuned is significantly worse than its own first stage on task" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "task/ndcg_at_10" in line] == [0, 2, 3]
    assert sum("loss" in line and line["tokens_per_second"] > 0 for line in lines) == 3
    assert "random_negatives_until: 0.5" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert CrossEncoder(str(tmp_path / "run" / "model")).max_seq_length == 32
    assert "CrossEncoder" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--eval_tasks", "demo", "--first_stage", "bm52"], "--first_stage bm52: found an unknown first stage"),
        (
            ["--negatives_from", "bm52"],
            "--negatives_from bm52: found an unknown first stage; expected rows, bm25",
        ),
    ],
)
def test_what_would_fail_at_the_end_is_refused_before_training(flags, said, trainer, tmp_path, capsys):
    tiny_reranker(tmp_path / "base")
    words = ["--model_name_or_path", tmp_path / "base", "--output_dir", tmp_path / "run", "--max_steps", "1", *flags]
    with pytest.raises(SystemExit):
        trainer.main([str(word) for word in words])
    assert f"error: {said}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_tuned_reranker_below_base_and_first_stage_is_said_to_be(capsys):
    queries = [f"q{n}" for n in range(20)]
    task = Task("task", "dev", dict.fromkeys(queries, "물음"), {"a": "답", "b": "아님"}, {q: {"a": 1} for q in queries})
    right = {query: {"a": 1.0, "b": 0.0} for query in queries}
    wrong = {query: {"a": 0.0, "b": 1.0} for query in queries}
    once = right | {"q0": wrong["q0"]}
    lines = {}
    for tuned in ("right", "once", "wrong"):
        runs = {"bm25": right, "base": once, "tuned": {"right": right, "once": once, "wrong": wrong}[tuned]}
        rows = {name: _scored(task, run, "bm25", 2, None, 0.0) for name, run in runs.items()}
        _, lines[tuned] = _report(task, rows, 2)
    assert lines["right"] == []
    assert lines["once"] == ["WARNING: tuned is worse than its own first stage on task (-0.018, p = 1.0000)"]
    called = ["its own first stage", "its base"]
    for line, other in zip(lines["wrong"], called, strict=True):
        assert line.startswith(f"WARNING: tuned is significantly worse than {other} on task (-0.3")


@pytest.mark.parametrize("recipe", sorted((ROOT / "reranker" / "recipes").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_recipe_parses(recipe):
    from koir.runs.command import _parsed
    from koir.runs.rerankers import RERANKER

    groups, _ = _parsed([str(recipe), "--fp16", "false", "--bf16", "false"], "", RERANKER, CacheArguments)
    check_together(groups)
