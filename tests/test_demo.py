"""The bundled corpus is what its README says, and its held-out queries stay out of training."""

import json
import re
import unicodedata
from collections import Counter

import pytest

from koir.evaluation.tasks import load_task
from koir.manifest import DEMO


def lines(name):
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


def beginnings(text):
    return {word[:2] for word in re.findall(r"[가-힣A-Za-z0-9]+", text) if len(word) > 1}


def test_passages_span_the_domains_within_their_bounds():
    corpus = lines("beir/corpus.jsonl")
    domains = Counter(row["_id"].rsplit("-", 1)[0] for row in corpus)
    assert len(corpus) >= 240 and len(domains) >= 12 and min(domains.values()) >= 12
    assert all(60 <= len(row["text"]) <= 400 for row in corpus)
    assert len({row["text"] for row in corpus}) == len({row["title"] for row in corpus}) == len(corpus)


def test_every_passage_has_three_registers_and_one_held_out_query():
    queries = Counter(row["_id"].split("-", 2)[2] for row in lines("beir/queries.jsonl"))
    assert queries == dict.fromkeys(("keywords", "polite", "colloquial", "held-out"), len(lines("beir/corpus.jsonl")))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_held_out_queries_share_few_words_with_their_passage_and_are_not_trained_on(split):
    task, trained = load_task("demo", split), {row["query"] for row in lines("triplets.jsonl")}
    for query, answers in task.qrels.items():
        (answer,) = answers
        assert query == f"{answer}-held-out" and task.queries[query] not in trained
        assert len(beginnings(task.queries[query]) & beginnings(task.corpus[answer])) <= 2


def test_triplets_name_passages_and_their_neighbours():
    corpus = {f"{row['title']}\n{row['text']}": row["_id"].rsplit("-", 1)[0] for row in lines("beir/corpus.jsonl")}
    for row in lines("triplets.jsonl"):
        assert 1 <= len(row["hard_negative"]) <= 3
        assert {corpus[text] for text in row["hard_negative"]} == {corpus[row["document"]]}


def test_everything_is_nfc():
    for name in ("beir/corpus.jsonl", "beir/queries.jsonl", "triplets.jsonl"):
        text = (DEMO / name).read_text(encoding="utf-8")
        assert unicodedata.is_normalized("NFC", text)


def test_the_tokenizer_knows_every_character():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DEMO / "base" / "tokenizer.json"))
    odd = "뷁 𠮷野家 😀 ㈜ ﷽ naïve \u200b"
    texts = [row["text"] for row in lines("beir/corpus.jsonl")] + [odd]
    assert not any(tokenizer.token_to_id("<unk>") in encoding.ids for encoding in tokenizer.encode_batch(texts))
    assert tokenizer.decode(tokenizer.encode("연차는 며칠인가요? 뷁").ids) == "연차는 며칠인가요? 뷁"
