"""Benchmarks run from start to end on something small, and what they write has the fields that pages name."""

import json

import pytest
from commands import ROOT, run

SMALL = ["--layers", "1", "--dimensions", "64", "--max_seq_length", "64", "--rounds", "1", "--sweep_batch", "4"]


def test_one_step_of_every_engine_that_is_installed(tmp_path):
    pytest.importorskip("sentence_transformers")
    file = tmp_path / "step.json"
    words = [*SMALL, "--batch", "8", "--rival", "mini_batch_num_tokens=512", "--json", file]
    done = run(ROOT / "benchmarks/train_step.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text(encoding="utf-8"))
    kept = {"keep_auto", "keep_half", "keep_none"}
    wanted = {"over_uncached_ideal", "vs_sentence_transformers_default", "vs_sentence_transformers_best"}
    assert found["ratios"].keys() == kept and all(of_one.keys() == wanted for of_one in found["ratios"].values())
    assert {"versions", "hardware", "git", "command"} <= found.keys()
    losses, norms = zip(*found["loss_and_gradient_norm"].values(), strict=True)
    assert max(losses) - min(losses) < 1e-4 and max(norms) - min(norms) < 1e-3 * max(norms)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "0"], "--batch: found 0; expected at least 1"),
        (["--json", "/nowhere/x.json"], "--json /nowhere/x.json: found no such folder"),
        (["--train_data", "no-such-file.jsonl"], "no-such-file.jsonl: found no such file"),
        (["--train_data", "koir/demo/triplets.jsonl", "--batch", "99999"], "--batch 99999: found "),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(words, said):
    done = run(ROOT / "benchmarks/train_step.py", *SMALL, *words)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and said in line
    assert "swept" not in done.stdout
