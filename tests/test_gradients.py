"""The cache changes nothing but memory: every parameter's gradient, v1.1 against v1, through the real Trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from one_step import gradients, tiny_encoder

from koir.gradcache import GradientCache
from koir.tokens import pad

HERE = Path(__file__).parent
TEXTS = [
    "연차는 며칠인가요", "육아휴직 급여", "전세 보증금을 돌려받지 못하면 어떻게 합니까", "김치가 시어지는 까닭",
    "퇴직금은 1년 이상 일한 근로자에게 계속근로기간 1년마다 30일분 이상의 평균임금으로 지급한다.",
    "확정일자를 받으면 우선변제권이 생긴다.", "한라산은 제주도 한가운데에 솟은 화산이다.", "유산균이 젖산을 만든다. " * 6,
    "환승할인", "절대 참조는 달러 기호로 셀 주소를 고정한다.", "DHCP 서버가 주소를 나눠 준다.", "측우기는 1441년에 고안되었다.",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """16 rows: without, with one and with several hard negatives; repeated documents, queries and siblings."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for i in range(14):
        row = {"query": f"{TEXTS[i % 4]} {i}", "document": TEXTS[4 + i % 5]}
        negatives = [TEXTS[4 + (i + step) % 8] for step in (1, 2, 3)][: i % 4]
        lines.append(row | {"hard_negative": [n for n in negatives if n != row["document"]]})
    lines.append({"query": TEXTS[0], "document": [TEXTS[9], TEXTS[10]], "hard_negative": TEXTS[11]})
    lines.append({"query": TEXTS[0], "document": TEXTS[6]})
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


def assert_equal(found, expected, double=False):
    """The design's "equal gradients", of every parameter that either side has."""
    assert found.keys() == expected.keys() and len(found) > 20
    everything = torch.cat([g.flatten() for g in expected.values()]).norm()
    bound = 1e-9 if double else 1e-5
    for name, gradient in expected.items():
        allowed = bound * max(gradient.norm(), 1e-3 * everything)
        difference = (found[name] - gradient).norm()
        assert difference <= allowed, f"{name}: {difference:.3e} > {allowed:.3e}"
    assert everything > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("chunk_tokens", [24, 100, 4096])
def test_cached_equals_plain(rows, tmp_path, dropout, accumulation, chunk_tokens):
    same = {"rows": rows, "dropout": dropout, "accumulation": accumulation, "chunk_tokens": chunk_tokens}
    plain = gradients("v1", folder=tmp_path / "plain", **same)
    cached = gradients("v1.1", folder=tmp_path / "cached", **same)
    assert_equal(cached, plain)


@pytest.mark.parametrize("keep", [0, 60, 10**9])
def test_what_is_kept_changes_nothing(rows, tmp_path, keep):
    same = {"rows": rows, "dropout": 0.2, "chunk_tokens": 40, "double": True}
    plain = gradients("v1", folder=tmp_path / "plain", **same)
    cached = gradients("v1.1", folder=tmp_path / "cached", keep=keep, **same)
    assert_equal(cached, plain, double=True)


def test_clipping_and_loss_agree(rows, tmp_path):
    (plain, plain_loss), (cached, cached_loss) = (
        gradients(v, rows, tmp_path / v, dropout=0.1, accumulation=2, clip=0.01, loss=True) for v in ("v1", "v1.1")
    )
    assert_equal(cached, plain)
    assert abs(plain_loss - cached_loss) < 1e-5
    norm = torch.cat([g.flatten() for g in plain.values()]).norm()
    assert abs(norm - 0.01) < 1e-4


@pytest.mark.parametrize("setting", [{"temperature": 0.1}, {"max_hard_negatives": 0}, {"max_hard_negatives": 1}])
def test_each_setting_changes_the_gradients(rows, tmp_path, setting):
    before = gradients("v1.1", rows, tmp_path / "a", batch=16)
    after = gradients("v1.1", rows, tmp_path / "b", batch=16, **setting)
    assert any(not torch.allclose(before[name], after[name], rtol=1e-3) for name in before)


def _torchrun(processes, out, settings):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launcher, str(HERE / "one_step.py"), str(out), json.dumps(settings)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("version", ["v1", "v1.1"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_equal_one_on_the_joined_batch(rows, tmp_path, version, accumulation):
    """Documents, queries and siblings repeat across the two; the chunk plans differ between them."""
    settings = {"version": version, "rows": str(rows), "chunk_tokens": 50, "accumulation": accumulation}
    batch = 8 // accumulation
    one = gradients(folder=tmp_path / "one", batch=batch, **settings)
    two = _torchrun(2, tmp_path / "two.pt", settings | {"batch": batch // 2})
    assert_equal(two, one)


def test_replay_draws_the_same_masks_and_leaves_the_generator_alone():
    encoder = tiny_encoder(dropout=0.3).train()
    chunks = [pad([[0, 5, 6, 2]], 1), pad([[0, 7, 2], [0, 9, 2]], 1)]
    runs = []
    for keep in (0, 10**9):
        torch.manual_seed(1)
        seen = []
        cache = GradientCache(lambda chunk: encoder([chunk]), lambda value: value.backward(), keep)
        cache(chunks, lambda embeddings, seen=seen: seen.append(embeddings.detach().clone()) or embeddings.sum())
        runs.append((seen[0], torch.rand(3)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
