"""Mining: which candidates become hard negatives, and why others do not."""

import random

import pytest

from koir.duplicates import normalised
from koir.errors import FlagError
from koir.mining import Answers, Query, Rules, Statistics, mine, near_equal

SYLLABLES = [chr(0xAC00 + 31 * i) for i in range(300)]


def text(seed, count=40):
    generator = random.Random(seed)
    return " ".join("".join(generator.choices(SYLLABLES, k=3)) for _ in range(count))


CORPUS = {name: text(name) for name in "abcdefgh"}
SCORES = {"a": 10.0, "b": 9.6, "c": 9.5, "d": 8.0, "e": 7.0, "f": 6.0}  # a is the row's document


def mined(candidates=SCORES, positives=("a",), answers=(), corpus=CORPUS, query="어떤 질문인가", **rules):
    statistics = Statistics()
    row = Query(query, positives, frozenset(answers) | frozenset(positives))
    return mine(row, candidates, corpus, Rules(**rules), statistics), statistics


def test_a_candidate_above_95_percent_of_the_positive_is_a_likely_false_negative():
    chosen, statistics = mined()
    assert chosen == ["c"]
    assert statistics.counts["likely false negative"] == 1
    assert (statistics.positives, statistics.negatives) == ([10.0], [9.5])


def test_several_negatives_come_best_first_and_every_candidate_is_accounted_for():
    chosen, statistics = mined(num_negatives=3)
    assert chosen == ["c", "d", "e"]
    assert statistics.counts["all negatives"] == statistics.counts["rows"] == 1
    corpus = CORPUS | {"d": CORPUS["a"] + "!"}
    for rules in ({}, {"skip_top": 2}, {"skip_top": 9}, {"num_negatives": 3, "corpus": corpus}):
        counts = mined(**rules)[1].counts
        reasons = ("right answer", "skipped", "likely false negative", "near-equal", "chosen", "not needed")
        assert sum(counts[reason] for reason in reasons) == counts["candidates"] == 6


def test_a_margin_replaces_the_ratio_where_scores_can_be_negative():
    logits = {"a": -1.0, "b": -1.01, "c": -2.5, "d": -4.0}
    assert mined(logits, margin=2.0)[0] == ["d"]
    assert mined(logits)[0] == ["b"]  # a share of a negative score says nothing: below the positive is enough
    assert mined(logits | {"b": -0.97})[0] == ["c"] == mined(logits | {"b": -0.97}, margin=0.0)[0]


def test_right_answers_of_the_query_are_never_negatives_whatever_row_they_come_from():
    answers = Answers()
    answers.add("어떤  질문인가?", ["c"])
    answers.add("어떤 질문인가", ["a"])
    answers.add("다른 질문", ["d"])
    assert answers.of("어떤 질문인가!") == {"a", "c"} and answers.of("없는 질문") == frozenset()
    assert mined(answers=answers.of("어떤 질문인가"))[0] == ["d"]


@pytest.mark.parametrize(
    "copy",
    [
        CORPUS["a"].replace(" ", "  ") + "!",
        CORPUS["a"] + " 한마디 더",
        CORPUS["a"] + text("z", 200),  # a longer passage that holds the whole answer
        CORPUS["a"][: len(CORPUS["a"]) // 2],
        "어떤 질문인가?",
    ],
)
def test_texts_near_equal_to_a_right_answer_or_to_the_query_are_passed_over(copy):
    chosen, statistics = mined(corpus=CORPUS | {"c": copy})
    assert chosen == ["d"] and statistics.counts["near-equal"] == 1


def test_a_passage_that_quotes_the_question_may_be_a_negative():
    assert mined(corpus=CORPUS | {"c": "어떤 질문인가 " + CORPUS["c"]})[0] == ["c"]


def test_negatives_of_one_row_differ_from_each_other():
    chosen, _ = mined(corpus=CORPUS | {"d": CORPUS["c"] + "."}, num_negatives=2)
    assert chosen == ["c", "e"]
    assert mined(corpus=CORPUS | {"d": CORPUS["c"] + text("z", 200)}, num_negatives=2)[0] == ["c", "e"]


def test_skip_top_passes_over_the_best_that_are_not_right_answers():
    chosen, statistics = mined(skip_top=2, num_negatives=2)
    assert chosen == ["d", "e"] and statistics.counts["skipped"] == 2
    assert mined(skip_top=9)[0] == []


def test_random_sampling_depends_on_seed_and_query_alone():
    draws = {seed: tuple(mined(sampling="random", num_negatives=2, seed=seed)[0]) for seed in range(20)}
    assert len(set(draws.values())) > 3
    assert all(SCORES[first] > SCORES[second] for first, second in draws.values())
    renamed = {"a": 10.0, "h": 9.0, "g": 8.0, "f": 7.0}
    assert mined(renamed, sampling="random", num_negatives=3)[0] == ["h", "g", "f"]  # best first, whatever their ids
    turned = dict(reversed(SCORES.items()))
    assert all(tuple(mined(turned, sampling="random", num_negatives=2, seed=s)[0]) == d for s, d in draws.items())
    assert len({tuple(mined(sampling="random", num_negatives=2, query=f"질문 {i}")[0]) for i in range(20)}) > 3


def test_of_equal_scores_the_greater_id_comes_first():
    """As trec_eval breaks ties: a reranker's logits come in the order of the first stage."""
    assert mined({"a": 10.0, "c": 9.0, "d": 9.0, "b": 9.0}, num_negatives=2)[0] == ["d", "c"]


def test_what_repeats_a_negative_that_the_row_has_is_passed_over():
    statistics, corpus = Statistics(), CORPUS | {"c": CORPUS["h"] + "."}
    row = Query("어떤 질문인가", ["a"], frozenset("a"), given=[CORPUS["h"]])
    assert mine(row, SCORES, corpus, Rules(), statistics) == ["d"] and statistics.counts["near-equal"] == 1


def test_a_positive_that_was_not_retrieved_leaves_the_row_without_negatives():
    chosen, statistics = mined({"b": 9.0, "c": 8.0})
    assert chosen == []
    assert statistics.counts["positive not retrieved"] == statistics.counts["no negatives"] == 1


def test_the_lowest_retrieved_document_of_a_row_sets_the_ceiling():
    assert mined(positives=("a", "d"))[0] == ["e"]
    assert mined(positives=("a", "h"))[0] == ["c"]


def test_fewer_than_wanted_is_counted():
    chosen, statistics = mined(num_negatives=9)
    assert len(chosen) == 4 and statistics.counts["fewer negatives"] == 1


def test_histograms_share_their_edges_and_statistics_add_up():
    first, second = mined(num_negatives=3)[1], mined()[1]
    first.add(second)
    assert first.counts["rows"] == 2
    histogram = first.histogram(bins=5)
    assert (sum(histogram["positives"]), sum(histogram["negatives"]), len(histogram["edges"])) == (2, 4, 6)
    assert Statistics().histogram(3)["negatives"] == [0, 0, 0]


def test_rows_of_a_query_share_what_is_near_equal_to_its_answers(monkeypatch):
    compared = []
    monkeypatch.setattr("koir.mining.near_equal", lambda text, *rest, **how: bool(compared.append(text)))
    equal, counts = {}, Statistics()
    for _ in range(5):
        mine(Query("q", ["a"], frozenset("a"), equal=equal), {"a": 1.0, "b": 0.5}, CORPUS, Rules(), counts)
    assert (counts.counts["chosen"], equal) == (5, {"b": False})
    assert len(compared) == 2 + 5  # with query and answers once, with the row's own each time


@pytest.mark.parametrize("shift", [-740, -400, -150, 150, 300, 600, 740])
def test_two_windows_of_one_page_that_overlap_are_equal(shift):
    """The answer stands in the middle of its window, so a window that has it too overlaps by about a half."""
    page = text("쪽", 1200)
    window = page[1500:3000]
    other = f"제목\n{page[1500 + shift : 3000 + shift]}"
    assert near_equal(other, [f"제목\n{window}"], 0.8, part=True)


def test_a_short_window_that_begins_or_ends_in_a_long_page_is_equal_to_it():
    """Half of it stands there: its first third or its last does, and none of the page's stands in it."""
    page, own = normalised(text("쪽", 1000)), normalised(text("다른 글", 100))
    for short in (own + page[:300], page[-300:] + own):
        assert near_equal(short, [page], 0.8, part=True) and near_equal(page, [short], 0.8, part=True)
    assert not near_equal(own + own[::-1], [page], 0.8, part=True)


def test_passages_that_share_a_heading_or_a_notice_are_not_equal():
    heading, notice = text("제목", 150), text("알림", 150)
    assert len(normalised(heading)) > 100
    one, other = (f"{heading}\n{text(seed, 250)}\n{notice}" for seed in (1, 2))
    assert not near_equal(one, [other], 0.8, part=True)


def test_near_equal_counts_3_grams_of_both_or_of_the_shorter():
    assert near_equal("가나다라 마바사", ["전혀 다른 말", "가나다라마바사!"], 1.0)
    assert not near_equal(CORPUS["a"], [CORPUS["a"] + text("z", 200)], 0.8)
    assert near_equal(CORPUS["a"], [CORPUS["a"] + text("z", 200)], 0.8, part=True)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"num_negatives": 0}, "at least 1"),
        ({"skip_top": -1}, "at least 0"),
        ({"max_ratio": 0.0}, "above 0"),
        ({"sampling": "best"}, "top or random"),
        ({"margin": -1.0}, "at least 0"),
        ({"near_duplicate_threshold": 1.5}, "above 0, at most 1"),
    ],
)
def test_rules_that_choose_nothing_are_refused(rules, expected):
    ((name, value),) = rules.items()
    with pytest.raises(FlagError, match=f"--{name}: found {value}; expected {expected}"):
        Rules(**rules)
