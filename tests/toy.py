"""Toy rows that hold every case the masks must know."""

import json

import pytest
import torch

from koir.kernels.bfloat16 import has_bfloat16

HAS_BFLOAT16 = has_bfloat16(torch.device("cpu"))
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="no AVX512-BF16 or AMX: float32 takes bfloat16's place")
TEXTS = [
    "연차는 며칠인가요",
    "육아휴직 급여",
    "전세 보증금을 돌려받지 못하면 어떻게 합니까",
    "김치가 시어지는 까닭",
    "퇴직금은 1년 이상 일한 근로자에게 계속근로기간 1년마다 30일분 이상의 평균임금으로 지급한다.",
    "확정일자를 받으면 우선변제권이 생긴다.",
    "한라산은 제주도 한가운데에 솟은 화산이다.",
    "유산균이 젖산을 만든다. " * 6,
    "환승할인",
    "절대 참조는 달러 기호로 셀 주소를 고정한다.",
    "DHCP 서버가 주소를 나눠 준다.",
    "측우기는 1441년에 고안되었다.",
]


@pytest.fixture
def any_bfloat16(monkeypatch):
    """A chip said to have bfloat16: where it has not, autocast still computes in it, if slowly."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """16 pairs: without, with one and with several hard negatives; repeated documents, queries and siblings."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for i in range(13):
        row = {"query": f"{TEXTS[i % 4]} {i}", "document": TEXTS[4 + i % 5]}
        negatives = [TEXTS[4 + (i + step) % 8] for step in (1, 2, 3)][: i % 4]
        lines.append(row | {"hard_negative": [n for n in negatives if n != row["document"]]})
    lines.append({"query": TEXTS[0], "document": [TEXTS[9], TEXTS[10]], "hard_negative": TEXTS[11]})
    lines.append({"query": TEXTS[0], "document": TEXTS[6]})
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def teacher_rows(rows, tmp_path_factory):
    """The same pairs with a teacher's scores and two sources."""
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(lines):
        row["source"] = "법령" if number % 3 else "위키"
        for field in ("document", "hard_negative"):
            texts = [row[field]] if isinstance(row.get(field), str) else row.get(field) or []
            row[field] = texts
            row[field + "_score"] = [len(text) % 7 - 2.5 * (field == "hard_negative") + number % 3 for text in texts]
    file = tmp_path_factory.mktemp("scored") / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines), encoding="utf-8")
    return file
