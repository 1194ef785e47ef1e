"""Equal gradients of every option of the loss: tiled, cached and spread over processes, against whole matrices."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from commands import saved_by
from one_step import tiny_encoder
from options import GUIDE, OPTIONS, cached, plain
from test_gradients import assert_equal

from koir import contrast, losses
from koir.arguments import LossArguments
from koir.batches import Collator, require_scores
from koir.errors import RowError
from koir.losses import right_answers
from koir.triplets import answers_of_repeated, load_triplets, text_hash


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_equals_plain_autograd(teacher_rows, option, monkeypatch):
    expected = plain(teacher_rows, option, dropout=0.2)
    monkeypatch.setattr(losses.contrastive_loss, "__defaults__", _with_tiles_of(600))
    for keep in (0, 120, 10**9):
        assert_equal(cached(teacher_rows, option, dropout=0.2, keep=keep), expected, double=True)
    if option != "plain":
        other = plain(teacher_rows, "plain", dropout=0.2)
        assert any((other[name] - gradient).norm() > 1e-3 * gradient.norm() for name, gradient in expected.items())


def _with_tiles_of(size):
    return tuple(size if value == losses.TILE_BYTES else value for value in losses.contrastive_loss.__defaults__)


@pytest.mark.parametrize("keep", [0, 60])
def test_options_accumulate(teacher_rows, keep):
    same = {"rows": teacher_rows, "option": "everything", "dropout": 0.2, "accumulation": 2}
    assert_equal(cached(keep=keep, **same), plain(**same), double=True)


@pytest.fixture(scope="module")
def alone(teacher_rows):
    """option -> the gradients of one process."""
    found = {option: plain(teacher_rows, option) for option in OPTIONS}
    return found | {"accumulated": plain(teacher_rows, "everything", accumulation=2)}


@pytest.fixture(scope="module")
def together(teacher_rows, tmp_path_factory):
    """processes -> option -> gradients."""
    out = tmp_path_factory.mktemp("together") / "out.pt"
    return saved_by("options.py", 3, out, {"rows": str(teacher_rows)})


@pytest.mark.parametrize("processes", [2, 3])
def test_options_over_processes_equal_one(alone, together, processes):
    """Documents, queries and siblings repeat across the processes; their numbers of rows and chunk plans differ."""
    for option, expected in alone.items():
        assert_equal(together[processes][option], expected, double=True)


def test_a_rows_candidates_carry_their_scores(tmp_path):
    lines = [{"query": "가", "document": "나", "document_score": 3, "hard_negative": ["다", "라"],
              "hard_negative_score": [1, -2]}, {"query": "마", "document": "바", "document_score": 5},
             {"query": "사", "document": "아", "document_score": 4, "hard_negative": "자",
              "hard_negative_score": 0.5}]  # fmt: skip
    pairs = list(_triplets(tmp_path, lines).pairs)
    batch = Collator(tiny_encoder(), 50, distillation=True)(pairs)
    assert batch["teacher_columns"].tolist() == [[0, 3, 4], [1, -1, -1], [2, 5, -1]]
    assert batch["teacher_scores"].tolist() == [[3, 1, -2], [5, 0, 0], [4, 0.5, 0]]
    batch = Collator(tiny_encoder(), 50, max_hard_negatives=1, distillation=True)(pairs)
    assert batch["document_hash"].tolist() == [text_hash(text) for text in "나바아다자"]  # the first of two negatives
    assert batch["teacher_columns"].tolist() == [[0, 3], [1, -1], [2, 4]]
    assert batch["teacher_scores"].tolist() == [[3, 1], [5, 0], [4, 0.5]]


def test_what_another_row_calls_an_answer_is_known_without_that_row(tmp_path):
    lines = [{"query": "가", "document": "나", "hard_negative": "라"}, {"query": "마", "document": ["바", "사"]},
             {"query": "가", "document": "다"}, {"query": "아", "document": "다"}]  # fmt: skip
    pairs = _triplets(tmp_path, lines).pairs
    answers = answers_of_repeated(pairs)
    assert answers == {"가": sorted(map(text_hash, "나다")), "마": sorted(map(text_hash, "바사"))}
    assert answers_of_repeated(pairs.select([0, 4])) == {}
    batch = Collator(tiny_encoder(), 50, answers=answers)([pairs[0], pairs[4]])
    assert batch["known"].tolist() == [answers["가"], [text_hash("다"), 0]]
    both = Collator(tiny_encoder(), 50, answers=answers)([pairs[0], pairs[3]])["known"]
    assert both.tolist() == [answers["가"], [text_hash("다"), 0]]  # the first of a query's rows has them for all
    right = right_answers(batch["known"], batch["document_hash"])  # columns: 나, 다 of the other row, 라
    assert right.tolist() == [[True, True, False], [False, True, False]]


def _triplets(folder, lines):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return load_triplets([str(file)])


def test_distillation_without_scores_is_refused_at_the_door(rows, teacher_rows, tmp_path):
    require_scores(load_triplets([str(teacher_rows)]), "--distillation kl")
    with pytest.raises(RowError, match="--distillation kl: found 16 of 16 pairs without a teacher's scores"):
        require_scores(load_triplets([str(rows)]), "--distillation kl")
    with pytest.raises(RowError, match="no hard negatives"):
        require_scores(load_triplets([str(teacher_rows)]), "--distillation kl", max_hard_negatives=0)
    with pytest.raises(RowError, match="no hard negatives"):
        require_scores(_triplets(tmp_path, [{"query": "가", "document": "나", "document_score": 1}]), "--loss mse")
    half = [{"query": "가", "document": "나", "document_score": 1, "hard_negative": "다"}]
    with pytest.raises(RowError, match="1 of 1 pairs .* the first of query '가'"):
        require_scores(_triplets(tmp_path, half), "--distillation kl", lone=False)


def test_a_row_without_hard_negatives_has_no_order_and_needs_no_score(tmp_path):
    lines = [{"query": "가", "document": "나"}, {"query": "사", "document": "아", "document_score": 4,
             "hard_negative": "자", "hard_negative_score": 0.5}]  # fmt: skip
    triplets = _triplets(tmp_path, lines)
    require_scores(triplets, "--distillation kl", lone=False)
    with pytest.raises(RowError, match="1 of 2 pairs without a teacher's scores, .* query '가'.* in every row"):
        require_scores(triplets, "--loss mse")
    batch = Collator(tiny_encoder(), 50, distillation=True)(list(triplets.pairs))
    assert batch["teacher_columns"].tolist() == [[0, -1], [1, 2]]
    assert batch["teacher_scores"].tolist() == [[0, 0], [4, 0.5]]


def test_masks_are_counted():
    queries = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
    guide = losses.Guide(torch.eye(4), torch.ones(4, 4) / 2)  # everything as likely as the target: nothing is left out
    _, negatives = losses.contrastive_loss(queries, queries, torch.arange(4), 0.1, guide=guide)
    assert negatives == 12
    known, hashes = torch.tensor([[1], [2], [3], [3]]), torch.tensor([1, 2, 3, 4])  # the last row's own is no answer
    _, negatives = losses.contrastive_loss(queries, queries, torch.arange(4), 0.1, known, hashes, guide=guide)
    assert negatives == 11
    _, negatives = losses.contrastive_loss(queries, queries, torch.arange(4), 0.1, guide=guide._replace(margin=0.1))
    assert negatives == 0
    near = losses.Guide(torch.eye(4), torch.full((4, 4), 0.42) + 0.08 * torch.eye(4))  # targets at 0.5, others at 0.42
    for relative, left in ((True, 12), (False, 0)):  # a tenth of 0.5, or 0.1
        judge = near._replace(margin=0.1, relative=relative)
        assert losses.contrastive_loss(queries, queries, torch.arange(4), 0.1, guide=judge)[1] == left
    aside = losses.Guide(torch.eye(4), torch.full((4, 4), -0.5) - torch.eye(4) / 10)  # targets at -0.6, others at -0.5
    _, negatives = losses.contrastive_loss(
        queries, queries, torch.arange(4), 0.1, guide=aside._replace(margin=-0.5, relative=True)
    )
    assert negatives == 12


def test_texts_may_be_shorter_in_training_than_the_model_reads():
    rows = [{"query": "질문", "document": "유산균이 젖산을 만든다. " * 9, "hard_negatives": [], "right_answers": [1]}]
    wide, narrow = (Collator(tiny_encoder(), 500, longest=length)(rows) for length in (None, 16))
    assert max(chunk["input_ids"].shape[1] for chunk in narrow["chunks"]) == 16
    assert max(chunk["input_ids"].shape[1] for chunk in wide["chunks"]) > 16
    assert narrow["tokens"] < wide["tokens"]


class Letters:
    """A tokenizer of another model: a token is a letter's number."""

    pad_token_id = 9

    def __call__(self, texts, truncation, max_length):
        return {"input_ids": [[ord(letter) for letter in text][:max_length] for text in texts]}


def test_a_guide_reads_with_its_own_prompts_tokenizer_and_length():
    guide = tiny_encoder()
    guide.tokenizer, guide.max_seq_length, guide.prompts = Letters(), 8, {"query": "q", "document": "d"}
    rows = [{"query": "ab", "document": "abcdefghijkl", "hard_negatives": ["abc"], "right_answers": [5, 6]}]
    batch = Collator(tiny_encoder(), 500, guide=guide, longest=16)(rows)
    assert batch["known"].tolist() == [[5, 6]]
    seen = batch["guide"]
    (chunk,), order = seen["chunks"], seen["inverse"].tolist()
    texts = ["".join(map(chr, ids)) for ids in chunk["input_ids"].tolist()]
    assert [texts[place] for place in order] == ["qab\t\t\t\t\t", "dabcdefg", "dabc\t\t\t\t"]  # 9 is a tab
    assert (seen["query"].tolist(), seen["document"].tolist(), seen["tokens"]) == ([0], [1, 2], 3 + 8 + 4)


def test_the_second_of_two_processes_by_hand(monkeypatch):
    """Both have the same two rows: each query meets its own document, twice, and the other one, twice."""

    def gather_rows(groups, counts):
        sent.append(counts)
        return [torch.cat([rows, rows]) for rows in groups]

    sent = []
    monkeypatch.setattr(contrast, "gather_sizes", lambda *sizes: [[2, 3, 2], list(sizes)])
    monkeypatch.setattr(contrast, "gather_rows", gather_rows)
    monkeypatch.setattr(contrast, "world_size", lambda: 2)
    monkeypatch.setattr(contrast, "rank", lambda: 1)
    batch = {"inverse": torch.arange(4), "query": torch.arange(2), "document": torch.arange(2, 4),
             "target": torch.arange(2), "query_hash": torch.tensor([1, 2]), "document_hash": torch.tensor([3, 4]),
             "known": torch.tensor([[3], [4]])}  # fmt: skip
    embeddings = torch.eye(2).repeat(2, 1)
    for weight in (0.0, 0.5):
        loss, negatives = contrast.Contrast(LossArguments(temperature=0.5, symmetric_weight=weight))(embeddings, batch)
        assert negatives == 2  # of four columns, its own and that one's repetition taken away
        assert sent[-2] == [[2, 2], [2, 2], [6, 6]]  # the other one knows of three answers to a query
        assert loss.item() == pytest.approx((1 + weight) * (math.log(math.exp(2) + 2) - 2), rel=1e-6)


def test_a_guide_makes_no_graph_and_runs_in_the_precision_of_training():
    seen = []

    def embed(chunk):
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return torch.eye(2)

    plan = {"inverse": torch.arange(2), "query": torch.arange(1), "document": torch.arange(1, 2)}
    batch = plan | {"target": torch.arange(1), "query_hash": torch.tensor([1]), "document_hash": torch.tensor([2]),
                    "known": torch.tensor([[2]]), "guide": plan | {"chunks": [{}]}}  # fmt: skip
    judged = contrast.Contrast(LossArguments(**GUIDE), SimpleNamespace(embed=embed), lambda: torch.autocast("cpu"))
    judged(torch.eye(2), batch)
    assert seen == [(False, True)]
