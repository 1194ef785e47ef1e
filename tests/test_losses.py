import math

import pytest
import torch

from koir.contrast import among, merged_answers
from koir.losses import Teacher, contrastive_loss, info_nce, picked, right_answers


def test_two_by_two_by_hand():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    documents = torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    # scores / 0.5: row 0: 1.2, 1.6; row 1: 1.6, 1.2
    expected = (math.log(math.exp(1.2) + math.exp(1.6)) - 1.2 + math.log(math.exp(1.6) + math.exp(1.2)) - 1.2) / 2
    assert info_nce(queries, documents, torch.tensor([0, 1]), 0.5).item() == pytest.approx(expected, abs=1e-6)


def test_two_by_four_by_hand_with_a_masked_sibling():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    documents = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    known, hashes = torch.tensor([[1, 3], [2, 0]]), torch.tensor([1, 2, 3, 4])
    first = math.log(math.exp(1.0) + math.exp(0.0) + math.exp(0.8)) - 1.0  # column 2 answers query 0 too
    second = math.log(math.exp(0.0) + math.exp(1.0) + math.exp(0.8) + math.exp(0.6)) - 1.0
    loss = info_nce(queries, documents, torch.tensor([0, 1]), 1.0, known, hashes)
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_the_normalizer_divides_the_sum():
    queries = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    plain = info_nce(queries, queries, torch.arange(3), 0.1)
    assert info_nce(queries, queries, torch.arange(3), 0.1, normalizer=12).item() == pytest.approx(plain.item() / 4)


def test_half_precision_embeddings_are_scored_in_float32():
    queries = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    documents = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    half = info_nce(queries.bfloat16(), documents.bfloat16(), torch.arange(8), 0.01)
    exact = info_nce(queries.bfloat16().float(), documents.bfloat16().float(), torch.arange(8), 0.01)
    assert half.dtype == torch.float32 and torch.equal(half, exact)


def test_leading_dimensions_of_half_precision_are_scaled_in_float32():
    torch.manual_seed(0)
    queries, documents = (torch.nn.functional.normalize(torch.randn(8, 16), dim=1).bfloat16() for _ in "qd")
    half, exact = (
        info_nce(*sides, torch.arange(8), 0.01, dimensions=[16, 5])
        for sides in ((queries, documents), (queries.float(), documents.float()))
    )
    assert half.dtype == torch.float32 and torch.equal(half, exact)


def test_under_autocast_scores_and_gradients_are_those_of_float32():
    torch.manual_seed(0)
    sides = [torch.nn.functional.normalize(torch.randn(8, 16), dim=1).requires_grad_() for _ in "qd"]
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = info_nce(*sides, torch.arange(8), 0.01)
        found.append((loss.detach(), *torch.autograd.grad(loss, sides)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_masked_columns_get_no_gradient_and_no_nan():
    queries = torch.randn(2, 4, requires_grad=True)
    documents = torch.randn(3, 4, requires_grad=True)
    known, hashes = torch.tensor([[1, 2, 3], [2, 3, 0]]), torch.tensor([1, 2, 3])
    info_nce(queries, documents, torch.tensor([0, 1]), 0.01, known, hashes).backward()
    assert torch.isfinite(queries.grad).all() and torch.equal(documents.grad[2], torch.zeros(4))


def test_a_lone_row_without_negatives_has_no_loss():
    query = torch.randn(1, 4)
    assert info_nce(query, query, torch.tensor([0]), 0.05).item() == pytest.approx(0, abs=1e-6)


def test_gradients_are_those_of_the_definition():
    torch.manual_seed(0)
    queries = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    documents = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    known, hashes = torch.tensor([[1, 3], [5, 6], [7, 0]]), torch.tensor([1, 2, 3, 4, 5, 6, 7])
    target = torch.tensor([0, 4, 6])
    assert torch.autograd.gradcheck(lambda q, d: info_nce(q, d, target, 0.3, known, hashes), (queries, documents))


@pytest.mark.parametrize("term", ["kl", "margin_mse"])
def test_a_teacher_and_several_dimensions_by_hand(term):
    """The value too, which is what is logged; the first row's document is column 0."""
    torch.manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(3, 5, dtype=torch.float64), dim=1).requires_grad_()
    documents = torch.nn.functional.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1).requires_grad_()
    target, columns = torch.arange(3), [[0, 3, 4], [1, -1, -1], [2, 5, -1]]
    told = torch.tensor([[3.0, 1.0, -2.0], [5.0, 0.0, 0.0], [4.0, 0.5, 0.0]], dtype=torch.float64)
    teacher = Teacher(torch.tensor(columns), told, term, weight=0.7, temperature=2.0)

    def loss(queries, documents):
        return info_nce(queries, documents, target, 0.3, teacher=teacher, dimensions=[5, 3], weights=[1.0, 0.5])

    expected = 0.0
    for size, weight in ((5, 2 / 3), (3, 1 / 3)):
        parts = [torch.nn.functional.normalize(side[:, :size], dim=1) for side in (queries, documents)]
        scores = parts[0] @ parts[1].T / 0.3
        expected += weight * torch.nn.functional.cross_entropy(scores, target)
        for row, own in enumerate(columns):
            ours = scores[row, [column for column in own if column >= 0]]
            theirs = told[row, : len(ours)] / 2
            if term == "kl":
                said = (theirs.softmax(0) * (theirs.log_softmax(0) - ours.log_softmax(0))).sum()
            else:
                said = ((ours[0] - ours[1:]) - (theirs[0] - theirs[1:])).square().sum() / max(len(ours) - 1, 1)
            expected += weight * 0.7 * said / 3
    assert loss(queries, documents).item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.autograd.gradcheck(loss, (queries, documents))


@pytest.mark.parametrize("tile_bytes", [1, 300, 10**9])
def test_strips_change_neither_loss_nor_gradients(tile_bytes):
    torch.manual_seed(2)
    queries = torch.nn.functional.normalize(torch.randn(9, 6), dim=1).requires_grad_()
    documents = torch.nn.functional.normalize(torch.randn(25, 6), dim=1).requires_grad_()
    target, hashes = torch.arange(9) * 2, torch.arange(25) % 7
    known = torch.stack([hashes[target], (hashes[target] + 1) % 7], dim=1)
    mask = right_answers(known, hashes).scatter(1, target[:, None], False)
    scores = (queries @ documents.T / 0.05).masked_fill(mask, float("-inf"))
    plain = torch.nn.functional.cross_entropy(scores, target)
    expected = torch.autograd.grad(plain * 3, (queries, documents))
    strips = info_nce(queries, documents, target, 0.05, known, hashes, tile_bytes=tile_bytes)
    found = torch.autograd.grad(strips * 3, (queries, documents))
    assert strips.item() == pytest.approx(plain.item(), rel=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_negatives_are_the_columns_that_are_no_answer():
    known, hashes = torch.tensor([[1, 2], [3, 0]]), torch.tensor([1, 1, 2, 3, 4])
    _, counted = contrastive_loss(torch.randn(2, 3), torch.randn(5, 3), torch.tensor([0, 3]), 1.0, known, hashes)
    assert counted.item() == right_answers(known, hashes).logical_not().sum().item() == 6


def test_right_answers_compares_hashes_and_pads_match_nothing_real():
    known = torch.tensor([[5, 7], [9, 0]])
    assert right_answers(known, torch.tensor([7, 9, 5])).tolist() == [[True, False, True], [False, True, False]]


def test_rows_of_one_query_share_their_answers():
    merged = merged_answers(torch.tensor([1, 2, 1]), torch.tensor([[5, 0], [6, 0], [7, 8]]))
    assert [set(row) - {0} for row in merged.tolist()] == [{5, 7, 8}, {6}, {5, 7, 8}]


def test_answers_that_are_no_column_are_left_out():
    hashes, known = torch.tensor([7, 5, 9]), torch.tensor([[1, 5, 0, 7], [0, 0, 0, 0], [2, 3, 9, 4]])
    kept = among(hashes, known)
    assert [sorted(row) for row in kept.tolist()] == [[5, 7], [0, 0], [0, 9]]
    assert torch.equal(right_answers(kept, hashes), right_answers(known, hashes))
    assert among(hashes, known[1:2]).shape == (1, 0)


def test_rows_picked_many_times_get_the_same_bits_each_time():
    """With two threads, indexing adds up a row's gradients in another order almost every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        vectors, rows = torch.randn(50, 64, requires_grad=True), torch.randint(0, 50, (300, 10))
        weights = torch.randn(300, 10, 64)
        found = [torch.autograd.grad((picked(vectors, rows) * weights).sum(), vectors)[0] for _ in range(20)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(picked(vectors, rows), vectors[rows])
    torch.testing.assert_close(found[0], torch.zeros(50, 64).index_add_(0, rows.flatten(), weights.flatten(0, 1)))
    assert all(torch.equal(found[0], again) for again in found)
