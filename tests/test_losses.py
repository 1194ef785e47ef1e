import math

import pytest
import torch

from koir.losses import info_nce, right_answers
from koir.training import merged_answers


def test_two_by_two_by_hand():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    documents = torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    # scores / 0.5: row 0: 1.2, 1.6; row 1: 1.6, 1.2
    expected = (math.log(math.exp(1.2) + math.exp(1.6)) - 1.2 + math.log(math.exp(1.6) + math.exp(1.2)) - 1.2) / 2
    assert info_nce(queries, documents, torch.tensor([0, 1]), 0.5).item() == pytest.approx(expected, abs=1e-6)


def test_two_by_four_by_hand_with_a_masked_sibling():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    documents = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    answers = torch.tensor([[True, False, True, False], [False, True, False, False]])
    first = math.log(math.exp(1.0) + math.exp(0.0) + math.exp(0.8)) - 1.0  # column 2 answers query 0 too
    second = math.log(math.exp(0.0) + math.exp(1.0) + math.exp(0.8) + math.exp(0.6)) - 1.0
    loss = info_nce(queries, documents, torch.tensor([0, 1]), 1.0, answers)
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


def test_masked_columns_get_no_gradient_and_no_nan():
    queries = torch.randn(2, 4, requires_grad=True)
    documents = torch.randn(3, 4, requires_grad=True)
    answers = torch.tensor([[True, True, True], [False, True, True]])
    info_nce(queries, documents, torch.tensor([0, 1]), 0.01, answers).backward()
    assert torch.isfinite(queries.grad).all() and torch.equal(documents.grad[2], torch.zeros(4))


def test_a_lone_row_without_negatives_has_no_loss():
    query = torch.randn(1, 4)
    assert info_nce(query, query, torch.tensor([0]), 0.05).item() == pytest.approx(0, abs=1e-6)


def test_gradients_are_those_of_the_definition():
    torch.manual_seed(0)
    queries = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    documents = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    answers = torch.rand(3, 7) < 0.3
    target = torch.tensor([0, 4, 6])
    assert torch.autograd.gradcheck(lambda q, d: info_nce(q, d, target, 0.3, answers), (queries, documents))


def test_right_answers_compares_hashes_and_pads_match_nothing_real():
    known = torch.tensor([[5, 7], [9, 0]])
    assert right_answers(known, torch.tensor([7, 9, 5])).tolist() == [[True, False, True], [False, True, False]]


def test_rows_of_one_query_share_their_answers():
    merged = merged_answers(torch.tensor([1, 2, 1]), torch.tensor([[5, 0], [6, 0], [7, 8]]))
    assert [set(row) - {0} for row in merged.tolist()] == [{5, 7, 8}, {6}, {5, 7, 8}]
