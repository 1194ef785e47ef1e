"""Cleaning: what is dropped, under which reason, and that nothing else is."""

import random
import unicodedata
from collections import Counter

import numpy as np
import pytest

from koir.cleaning import Cleaner, word_grams
from koir.duplicates import MinHash, NearDuplicates, normalised, shingles, words
from koir.errors import FlagError

SYLLABLES = [chr(0xAC00 + 31 * i) for i in range(300)]
WORDS = ["".join(random.Random(i).choices(SYLLABLES, k=3)) for i in range(3000)]

SHORT = "국화는 가을에 핀다"


def text(seed, count):
    return " ".join(random.Random(seed).sample(WORDS, count))


def row(query=1, document=2, negative=None):
    """A row; numbers stand for texts that share no word."""
    query = text(query, 8) if isinstance(query, int) else query
    document = text(10_000 + document, 60) if isinstance(document, int) else document
    return {"query": query, "document": document, "hard_negative": negative, "source": "test", "id": None}


def reasons(rows, **settings):
    cleaner = Cleaner(**settings)
    return [cleaner.keep(one) for one in rows]


def test_rows_without_a_fault_are_kept_and_counted():
    cleaner = Cleaner()
    assert [cleaner.keep(row(i, i)) for i in range(50)] == [None] * 50
    assert cleaner.counts == {"kept": 50}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("왜?", SHORT), "too short"),
        (row(document="  가 나 "), "too short"),
        (row(document="가" * 101), "too long"),
        (row(document="─────── | 합계 | ───────"), "symbols"),
        (row(document="가나 " * 33), "repetition"),
        (row(document="저작권자 ⓒ 새벽신문, 무단 전재 및 재배포 금지. 끝"), "boilerplate"),
        (row(query="여름에 피는 꽃", document="여름에  피는 꽃!"), "query equals document"),
    ],
)
def test_a_bad_text_is_named(bad, reason):
    assert reasons([bad], max_characters=100) == [reason]


def test_texts_as_short_and_as_long_as_may_be_are_kept():
    bounds = {"min_characters": 4, "max_characters": 8}
    longest = row("가나다라", "마바사아자차카타", "파하거너더러머버")
    assert reasons([longest, row("가나다라", "마바사아자차카타파"), row("가나다", "마바사아")], **bounds) == [
        None, "too long", "too short"]  # fmt: skip
    assert longest["hard_negative"] == "파하거너더러머버"


def test_every_document_of_a_list_must_be_fit_and_none_may_be_the_query():
    assert reasons([row(document=[text(1, 60), "가 나"])]) == ["too short"]
    assert reasons([row(text(1, 8), [text(2, 60), text(1, 8) + "."])]) == ["query equals document"]
    both = row(1, [text(2, 60), text(3, 60)], [text(3, 60) + "!", text(4, 60)])
    assert reasons([both]) == [None] and both["hard_negative"] == [text(4, 60)]


def test_unfit_hard_negatives_go_and_the_row_stays():
    held_out = text(77, 60)
    cleaner = Cleaner(max_characters=400, exclude=[("과제", [text(5, 8)], [held_out])])
    negatives = [SHORT + ".", text(8, 20), "가" * 401, held_out[:200] + " 그리고", held_out]
    good = row(1, SHORT, negatives) | {"hard_negative_score": [1, 2, 3, 4, 5]}
    left_out = Counter()
    assert cleaner.keep(good, left_out) is None
    assert (good["hard_negative"], good["hard_negative_score"]) == ([negatives[1]], [2])
    assert left_out == {"a document of its row": 1, "too long": 1, "document in 과제 (13-gram)": 1,
                        "document in 과제 (equal)": 1}  # fmt: skip
    alone = row(2, 3, held_out) | {"hard_negative_score": 0.5}
    assert cleaner.keep(alone) is None
    assert (alone["hard_negative"], alone["hard_negative_score"]) == (None, None)


@pytest.mark.parametrize(
    "furniture",
    [
        "저작권자(c)새벽신문. 무단전재-재배포금지",
        "<저작권자ⓒ 새벽신문, 무단 전재 및 재배포를 금합니다>",
        "Copyright ⓒ 2021 새벽신문. All rights reserved. 무단전재 및 재배포 금지합니다.",
        "Copyright (c) by Dawn News",
        "로그인 후 이용해 주세요.",
        "로그인이 필요한 서비스입니다",
        "자바스크립트를 지원하지 않는 브라우저입니다. 본문 바로가기",
    ],
)
def test_site_furniture(furniture):
    assert reasons([row(document=furniture)]) == ["boilerplate"]


@pytest.mark.parametrize("cell", ["{}", "{:,}", "-", "○", "3.5%"])
def test_a_table_of_numbers_is_kept(cell):
    regions = [f"{WORDS[n]} | " + " | ".join(cell.format(n * month % 31) for month in range(12)) for n in range(17)]
    table = "지역 | " + " | ".join(f"{month}월" for month in range(1, 13)) + "\n" + "\n".join(regions)
    assert reasons([row(document=table)]) == [None]


@pytest.mark.parametrize(
    "asked",
    [
        "로그인이 필요 없는 메뉴를 알려 주세요",
        "자바스크립트를 사용해 배열을 정렬하는 방법을 알려주세요",
        "ⓒ 기호는 무엇을 뜻하나요?",
    ],
)
def test_a_query_is_no_site_furniture(asked):
    assert reasons([row(asked, 1)]) == [None]


def test_a_pictures_mark_does_not_make_an_article_furniture():
    assert reasons([row(document="(사진 ⓒ연합뉴스) 한빛시는 올해 3월부터 무료 버스를 운행하는 조례를 시행한다")]) == [
        None
    ]


@pytest.mark.parametrize(
    "asked",
    [
        "저작권자의 허락 없이 복제하면 어떤 처벌을 받나요?",
        "저작권자는 저작물을 공표할지 결정할 권리를 가진다.",
        "무단 복제를 하면 어떤 처벌을 받나요?",
        "무단 전재 금지는 어느 법에 나오나요?",
        "copyright와 저작권은 어떻게 다른가요?",
        "로그인이 필요한 서비스는 무엇인가요?",
        "로그인 후 이용 가능한 메뉴",
        "자바스크립트를 배우려면 무엇부터 해야 하나요?",
    ],
)
def test_questions_about_copyright_and_logging_in_are_no_furniture(asked):
    assert reasons([row(asked, 1), row(2, asked)]) == [None, None]


def test_boilerplate_is_more_than_half_of_a_document():
    notice = "All rights reserved"  # 19 characters
    halves = [f"{notice} {'가나다라마바사아자차카타파하거너더러'[:rest]}" for rest in (17, 18)]
    assert reasons([row(1, halves[0]), row(2, halves[1])]) == ["boilerplate", None]


def test_a_line_of_site_furniture_in_an_article_is_no_boilerplate():
    assert reasons([row(document=text(3, 60) + "\n저작권자 ⓒ 새벽신문, 무단 전재 금지")]) == [None]


def test_exact_duplicates_look_past_spaces_punctuation_case_and_normal_form():
    first = row(query="KTX는 언제 개통되었나?", document="고속철도 KTX는 2004년에 개통되었다.")
    again = row(query="ktx는 언제  개통되었나", document=unicodedata.normalize("NFD", first["document"]))
    assert reasons([first, again], near_duplicate_threshold=1) == [None, "exact duplicate"]


def test_lists_of_documents_are_compared_whole():
    one, two = row(1, 2)["document"], row(1, 3)["document"]
    rows = [row(1, [one, two]), row(1, [one, two + "!"]), row(1, [two]), row(1, one)]
    assert reasons(rows) == [None, "exact duplicate", None, None]


def test_near_duplicates_need_a_near_query_and_a_near_document():
    query, document = text(1, 12), text(2, 80)
    changed = " ".join(document.split()[:-4] + text(7, 4).split())
    longer = query + " 것"
    rows = [row(query, document), row(longer, changed), row(text(5, 12), document), row(query, text(6, 80))]
    assert reasons(rows) == [None, "near duplicate", None, None]
    assert reasons(rows, near_duplicate_threshold=0.99) == [None] * 4


def test_the_first_of_two_duplicates_is_kept_even_after_the_table_has_grown():
    rows = [row(i, i) for i in range(1500)]
    assert reasons(rows + rows[::100], near_duplicate_threshold=0.8) == [None] * 1500 + ["exact duplicate"] * 15
    near = [one | {"query": one["query"] + " 것"} for one in rows[::50]]
    assert reasons(rows + near)[1500:] == ["near duplicate"] * 30


def test_it_is_deterministic_for_a_seed():
    rows = [row(text(i % 40, 12) + " 것" * (i // 40), text(i % 40, 80)) for i in range(120)]
    assert reasons(rows, seed=3) == reasons(rows, seed=3)


def test_another_seed_draws_other_signatures():
    first, again, other = (Cleaner(seed=seed).facts(text(1, 20)).signature for seed in (1, 1, 2))
    assert np.array_equal(first, again) and (first == other).mean() < 0.1


def test_similarity_is_estimated_within_its_error():
    minhash, letters = MinHash(0), normalised(text(1, 300))
    for kept in (0, 400, 700, 900):
        first, second = shingles(letters), shingles(letters[:kept] + normalised(text(2, 300))[kept:])
        first, second = np.unique(first), np.unique(second)
        true = len(np.intersect1d(first, second)) / len(np.union1d(first, second))
        assert abs((minhash(first) == minhash(second)).mean() - true) < 0.15  # four standard errors


def test_a_text_of_any_length_has_the_signature_of_its_set():
    few = shingles(normalised(text(1, 300)))
    assert np.array_equal(MinHash(0)(np.tile(few, 200)), MinHash(0)(few))


def test_any_text_has_shingles_and_a_signature():
    for short in ("", "가", "가나"):
        assert MinHash(0)(shingles(short)).shape == (128,)
    assert not np.array_equal(shingles("가"), shingles("나"))


def test_shingles_are_as_many_as_the_3_grams_and_change_with_each_of_their_characters():
    letters = "".join(random.Random(1).choices("가나다라", k=600))
    grams = [f"\x02{letters}\x03"[place : place + 3] for place in range(600)]
    assert len(set(grams)) == len(set(shingles(letters).tolist())) == 4**3 + 2
    assert len(set(zip(grams, shingles(letters).tolist(), strict=True))) == 4**3 + 2


def test_many_questions_of_one_document_hide_no_near_duplicate():
    document, questions = text(0, 80), [text(number, 24) for number in range(400)]
    near = [question.rsplit(" ", 1)[0] + " 것" for question in questions]
    found = reasons([row(question, document) for question in questions + near], near_duplicate_threshold=0.7)
    assert found == [None] * 400 + ["near duplicate"] * 400


def test_rows_as_near_as_the_threshold_are_near_duplicates():
    signatures = np.random.default_rng(0).integers(0, 256, (2, 128), dtype=np.uint8)
    for changed, found in ((32, True), (33, False)):  # of 128: 0.75 is left, or less
        near, other = NearDuplicates(0.75), signatures.copy()
        other[1, 128 - changed :] += 1
        assert [near.add(*signatures), near.add(*other)] == [False, found]


def test_a_bucket_keeps_its_first_row():
    """The second row shares a band with the first and is not near it; the third is, and shares that band alone."""
    first, second = np.random.default_rng(0).integers(0, 256, (2, 2, 128), dtype=np.uint8)
    second[:, :2] = first[:, :2]
    third = first.copy()
    third[:, 2:24:2] += 1
    near = NearDuplicates(0.8)
    assert [near.add(*one) for one in (first, second, third)] == [False, False, True]


def test_tables_that_grow_forget_nothing():
    near, generator = NearDuplicates(0.8), np.random.default_rng(0)
    signatures = generator.integers(0, 256, (8500, 2, 128), dtype=np.uint8)
    assert not any(near.add(*one) for one in signatures)
    assert all(near.add(*one) for one in signatures[::7])


# --- decontamination -------------------------------------------------------------------------------------------------


def task(queries=(), documents=()):
    return [("시험", queries, documents)]


def test_queries_and_documents_of_tasks_are_found_as_equal_or_by_13_words():
    long_query, document = text(1, 20), text(2, 60)
    inside = text(3, 20) + " " + " ".join(document.split()[7:20]) + ". " + text(4, 20)
    settings = {"exclude": task([long_query, "짧은 질문입니까"], [document])}
    assert reasons([row(long_query + " 그리고 더", 9)], **settings) == ["query in 시험 (13-gram)"]
    assert reasons([row("짧은 질문 입니까?", 9)], **settings) == ["query in 시험 (equal)"]
    assert reasons([row(1, document.replace(" ", "  ") + ".")], **settings) == ["document in 시험 (equal)"]
    assert reasons([row(1, inside)], **settings) == ["document in 시험 (13-gram)"]
    assert reasons([row(1, [text(8, 30), inside])], **settings) == ["document in 시험 (13-gram)"]


def test_twelve_words_and_texts_shorter_than_13_words_are_no_overlap():
    query, document = text(1, 12), text(2, 60)
    inside = text(3, 20) + " " + " ".join(document.split()[:12]) + " " + text(4, 20)
    assert reasons([row(query + " 더", inside)], exclude=task([query], [document])) == [None]
    assert len(word_grams(words(query))) == 0 and len(word_grams(words(query + " 더"))) == 1


def test_a_query_is_not_looked_for_among_documents():
    query, document = text(1, 20), text(2, 60)
    assert reasons([row(document, 5), row(7, query)], exclude=task([query], [document])) == [None, None]


def test_each_of_several_tasks_is_looked_through():
    others = [("다른 시험", [text(3, 8)], [text(4, 60)]), *task([text(1, 8)], [text(2, 60)])]
    found = reasons([row(text(1, 8), 9), row(9, text(2, 60)), row(text(3, 8), 8)], exclude=others)
    assert found == ["query in 시험 (equal)", "document in 시험 (equal)", "query in 다른 시험 (equal)"]


def test_an_empty_task_excludes_nothing():
    assert reasons([row()], exclude=task()) == [None]


@pytest.mark.parametrize(
    "settings", [{"min_characters": 0}, {"min_characters": 9, "max_characters": 5}, {"near_duplicate_threshold": 1.5}]
)
def test_bounds_that_hold_nothing_are_refused(settings):
    with pytest.raises(FlagError):
        Cleaner(**settings)
