"""Morphemes: the cache changes how long it takes, never what is found."""

import random
import sqlite3
import unicodedata

import numpy as np
import pytest

from koir import bars
from koir.manifest import cache_folder
from koir.retrieval import bm25
from koir.retrieval import morphemes as module
from koir.retrieval.morphemes import morphemes

TEXTS = [
    "휴가를 받았습니다.",
    "",
    "!!",
    "서울시는 2024년에 예산을 늘렸다",
    "Python으로 만든 프로그램",
    "휴가를 받았습니다.",
]
WORDS = [["휴가"], [], [], ["서울시", "2024", "예산"], ["python", "프로그램"], ["휴가"]]


@pytest.fixture
def asked(monkeypatch):
    """A cache from the first character on; the texts that Kiwi was asked for."""
    (cache_folder() / "morphemes.sqlite").unlink(missing_ok=True)
    texts, kiwi = [], module._tokenised
    monkeypatch.setattr(module, "WORTH_KEEPING", 0)
    monkeypatch.setattr(module, "_tokenised", lambda some: texts.extend(some) or kiwi(some))
    yield texts
    (cache_folder() / "morphemes.sqlite").unlink(missing_ok=True)


def test_content_words_with_and_without_the_cache(asked):
    assert morphemes(TEXTS) == WORDS
    assert sorted(asked) == sorted(set(TEXTS))
    assert morphemes(TEXTS[::-1]) == WORDS[::-1]
    assert len(asked) == len(set(TEXTS))
    assert morphemes([unicodedata.normalize("NFD", text) for text in TEXTS]) == WORDS
    assert len(asked) == len(set(TEXTS))


def test_an_index_that_takes_long_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(bars, "PAUSE", 0)
    bm25.BM25({str(number): text for number, text in enumerate(TEXTS)}, progress=True)
    assert f"morphemes: 100% {len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err


def test_short_calls_leave_no_trace(monkeypatch):
    (cache_folder() / "morphemes.sqlite").unlink(missing_ok=True)
    assert morphemes(TEXTS) == WORDS and not (cache_folder() / "morphemes.sqlite").exists()


def test_other_versions_of_kiwi_do_not_meet(asked, monkeypatch):
    morphemes(TEXTS[:1])
    monkeypatch.setattr(module, "_version", lambda: b"another")
    morphemes(TEXTS[:1])
    assert asked == [TEXTS[0], TEXTS[0]]


def test_the_cache_is_bounded_and_forgets_the_older_half(asked, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(module, "CACHE_BYTES", 0)
    morphemes([f"예산 {number}" for number in range(64)])
    (rows,) = sqlite3.connect(cache_folder() / "morphemes.sqlite").execute("SELECT COUNT(*) FROM morphemes").fetchone()
    assert rows <= 2
    assert morphemes(TEXTS) == WORDS


def test_a_broken_cache_is_said_and_done_without(asked, capsys):
    (cache_folder() / "morphemes.sqlite").write_bytes(b"no database" * 100)
    assert morphemes(TEXTS) == WORDS
    assert "tokenised anew" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["damaged", "full"])
def test_a_cache_that_breaks_in_use_is_said_once_and_done_without(asked, monkeypatch, capsys, broken):
    monkeypatch.setattr(module, "CHUNK", 2)
    morphemes(TEXTS[:1])
    if broken == "full":

        def no_room(_):
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(module, "_forget_older_half", no_room)
    else:
        file = cache_folder() / "morphemes.sqlite"
        file.write_bytes(file.read_bytes()[:4096].ljust(file.stat().st_size, b"x"))  # the schema alone stays whole
    assert morphemes(TEXTS) == WORDS
    assert capsys.readouterr().err.count("tokenised anew") == 1


@pytest.fixture
def words_and_queries(monkeypatch):
    """A BM25 over 300 documents of 50 words, and queries for it."""
    generator = random.Random(0)
    words = [f"낱말{number}" for number in range(50)]
    texts = [" ".join(generator.choices(words, weights=range(50, 0, -1), k=20)) for _ in range(300)]
    monkeypatch.setattr(bm25, "morphemes", lambda texts, progress=None: [text.split() for text in texts])
    index = bm25.BM25({str(number): text for number, text in enumerate(texts)})
    return index, [" ".join(generator.sample(words, 4)) for _ in range(30)] + [words[-1], "없음", ""]


def test_threads_find_for_each_query_what_bm25s_adds_up(words_and_queries, tmp_path):
    index, queries = words_and_queries
    index.save(tmp_path)
    for searched in (index, bm25.BM25.load(tmp_path)):
        for query, run in zip(queries, searched.search(queries, 300), strict=True):
            known = [index.vocabulary[term] for term in bm25.terms([query])[0] if term in index.vocabulary]
            scores = index.index.get_scores_from_ids(known) if known else [0.0] * 300
            assert run == {index.ids[place]: score for place, score in enumerate(scores) if score}


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data.astype("float64")])
def test_an_index_whose_parts_do_not_fit_is_not_loaded(words_and_queries, tmp_path, damage):
    words_and_queries[0].save(tmp_path)
    (file,) = tmp_path.glob("data*.npy")
    np.save(file, damage(np.load(file)))
    with pytest.raises(ValueError, match="scores"):
        bm25.BM25.load(tmp_path)


@pytest.mark.parametrize("depth", [1, 5, 40, 1000])
def test_where_bm25_begins_to_rank_changes_nothing(words_and_queries, monkeypatch, depth):
    index, queries = words_and_queries
    found = index.search(queries, depth)
    monkeypatch.setattr(index, "_floor", lambda *_: 0.0)
    assert [list(run.items()) for run in found] == [list(run.items()) for run in index.search(queries, depth)]


def test_full_width_letters_and_characters_that_show_nothing_make_no_other_words():
    plain, odd = morphemes(["KT 5G 요금제는 대한민국", "\uff2b\uff34\u3000\uff15\uff27 요금제는 대\u200b한\u00ad민국"])
    assert plain == odd and "kt" in plain
    assert bm25.character_pairs("ＫＴ") == bm25.character_pairs("KT")
