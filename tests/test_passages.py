"""Documents in passages: nothing lost, nothing too long, and the best passage's score is the document's."""

import numpy as np
import pytest
from one_step import tiny_encoder
from test_reranker import PAIRS, tiny_reranker

from koir import passages as cutting
from koir.passages import passages, strongest
from koir.reranker import load_reranker

TOKENS = tiny_encoder().tokenizer


def length(text):
    return len(TOKENS(text, add_special_tokens=False, verbose=False)["input_ids"])


def numbered(sentences):
    return "".join(f"제{n}조 뷁 😀 漢字 ｶﾅ: 근로자에게 {7 * n}일을 준다.\n\n" for n in range(sentences))


@pytest.mark.parametrize("tokens", [1, 2, 3, 30, 100])
def test_passages_cover_a_text_in_order_and_share_a_quarter(tokens):
    texts = ["", " ", "가", *(numbered(n) for n in (1, 2, 9, 40))]
    for text, parts in zip(texts, passages(TOKENS, texts, tokens), strict=True):
        count = length(text)
        assert len(parts) == (1 if count <= tokens else -(-(count - tokens) // max(tokens - tokens // 4, 1)) + 1)
        assert all(length(part) <= tokens + 12 for part in parts)  # marks of several pieces stay whole
        if tokens >= 30:  # so much stands in one place only
            places = [text.index(part) for part in parts]
            ends = [place + len(part) for place, part in zip(places, parts, strict=True)]
            assert places[0] == 0 and ends[-1] == len(text)
            assert all(start < end for start, end in zip(places[1:], ends, strict=False))


def test_parts_by_hand():
    letters = "abcdefghij"
    assert cutting._parts(letters, [(n, n + 1) for n in range(10)], 4) == ["abcd", "defg", "ghij"]
    words = " ab cd ef gh ij "  # what no token holds, at the beginning and the end, is in the first and the last part
    assert cutting._parts(words, [(n, n + 2) for n in range(1, 16, 3)], 3) == [" ab cd ef", "ef gh ij "]


def test_however_many_texts_there_are_each_is_cut(monkeypatch):
    texts = [numbered(n) for n in range(1, 8)]
    whole = passages(TOKENS, texts, 20)
    monkeypatch.setattr(cutting, "BLOCK", 3)
    assert passages(TOKENS, texts, 20) == whole and min(map(len, whole)) > 1


def test_equal_texts_are_cut_once_and_keep_their_places():
    long = numbered(9)
    parts = passages(TOKENS, [long, "가", long], 20)
    assert parts[0] is parts[2] and parts[1] == ["가"]


def test_the_best_of_each_texts_parts():
    found = strongest(np.array([1.0, 5.0, -2.0, 0.0, 3.0]), [["a", "b"], ["c"], ["d", "e"]])
    assert found.tolist() == [5, -2, 3] and strongest(np.zeros(0), []).shape == (0,)


def test_a_document_scores_as_its_best_passage(tmp_path):
    reranker = tiny_reranker(tmp_path)
    found = reranker.score(PAIRS, passage_tokens=24)
    for (query, document), score in zip(PAIRS, found, strict=True):
        (parts,) = passages(reranker.tokenizer, [document], 24)
        assert score == pytest.approx(reranker.score([(query, part) for part in parts]).max(), abs=1e-5)
    assert (found != reranker.score(PAIRS)).any()
    assert reranker.score([], passage_tokens=24).shape == (0,)


def test_what_stands_at_the_end_is_read():
    reranker, question = load_reranker("demo"), "연차 휴가는 며칠인가요?"
    rest = "김치는 배추를 소금에 절여 젖산으로 발효한 음식이다. " * 60
    pairs = [(question, rest + end) for end in ("연차 휴가는 한 해에 15일이다.", "한라산은 제주도에 있다.")]
    beginnings, whole = reranker.score(pairs), reranker.score(pairs, passage_tokens=100)
    assert beginnings[0] == pytest.approx(beginnings[1], abs=1e-5) and whole[0] > whole[1] + 0.1


@pytest.mark.parametrize("most", [16, 24, 40])
def test_texts_that_are_not_read_to_their_end_are_counted(tmp_path, most):
    texts = ["가", "", *(document for _, document in PAIRS), *(numbered(n) for n in range(1, 6))]
    encoder = tiny_encoder()
    encoder.max_seq_length = most
    whole = encoder.tokenizer([encoder.prompts["document"] + text for text in texts], verbose=False)["input_ids"]
    assert encoder.too_long(texts, "document") == sum(len(ids) > most for ids in whole) > 0
    reranker = tiny_reranker(tmp_path)
    reranker.max_seq_length = most
    pairs = [("며칠인가요?", text) for text in texts]
    whole = reranker.tokenizer(*zip(*pairs, strict=True), verbose=False)["input_ids"]
    assert reranker.too_long(pairs) == sum(len(ids) > most for ids in whole) > 0
    assert reranker.too_long([]) == encoder.too_long([], "query") == 0
