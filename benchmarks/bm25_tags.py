"""What BM25 should count, which of Kiwi's parts of speech and pairs of characters: nDCG@10 on dev, one line a choice.

    .venv/bin/python benchmarks/bm25_tags.py TASK [TASK ...] [--split dev] [--json FILE]

Every text is tokenised once with all tags; a choice is then a filter, and what a pair weighs beside a word. Choose on
dev splits; the line marked * is what koir uses.
"""

import argparse
import json
import sys
import unicodedata
from pathlib import Path

import numpy as np
from kiwipiepy import Kiwi

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.evaluation.metrics import mean_ndcg  # noqa: E402
from koir.evaluation.results import table  # noqa: E402
from koir.evaluation.tasks import load_task  # noqa: E402
from koir.retrieval import bm25  # noqa: E402
from koir.retrieval.morphemes import CONTENT_TAGS  # noqa: E402

NOUNS = ("NNG", "NNP", "NR", "XR", "SL", "SN", "SH", "W_")  # with numerals, roots, foreign words, numbers, hanja, URLs
VERBS = ("VV", "VA")
CHOICES = {
    "every morpheme": ("",),
    "all but punctuation": (*NOUNS, "NNB", "NP", "V", "M", "I", "J", "E", "X"),
    "nouns": NOUNS,
    "nouns, prefixes, suffixes XSN": (*NOUNS, "XP", "XSN"),
    "nouns, all affixes": (*NOUNS, "XP", "XS"),
    "nouns, verbs": (*NOUNS, *VERBS),
    "nouns, verbs, dependent nouns": (*NOUNS, *VERBS, "NNB"),
    "nouns, verbs, pronouns": (*NOUNS, *VERBS, "NP"),
    "nouns, verbs, adverbs": (*NOUNS, *VERBS, "MA"),
    "nouns, verbs, determiners": (*NOUNS, *VERBS, "MM"),
    "nouns, verbs, negation": (*NOUNS, *VERBS, "VCN"),
    "nouns, verbs, prefixes": (*NOUNS, *VERBS, "XP"),
    "nouns, verbs, suffixes XSN": (*NOUNS, *VERBS, "XSN"),
    "nouns, verbs, prefixes, suffixes XSN": (*NOUNS, *VERBS, "XP", "XSN"),
    "nouns, verbs, all affixes": (*NOUNS, *VERBS, "XP", "XS"),
}
PAIR_WEIGHTS = (0.0, 0.25, 0.5, 1.0)


def tokenised(texts: list[str]) -> list[list[tuple[str, str]]]:
    """(word, tag) pairs of every text."""
    clean = [unicodedata.normalize("NFC", text).encode("utf-8", "ignore").decode() for text in texts]
    return [[(token.form.lower(), token.tag) for token in tokens] for tokens in Kiwi().tokenize(clean)]


def ndcg(task, documents: list, queries: list, tags: tuple[str, ...], pair_weight: float) -> float:
    """nDCG@10 of koir's BM25 where words are those whose tags begin with one of `tags`, and pairs weigh so much."""
    bm25.PAIR_WEIGHT = pair_weight
    kept = [[[w for w, tag in words if tag.startswith(tags)] for words in texts] for texts in (documents, queries)]
    bm25.morphemes = lambda texts: kept[0]
    index = bm25.BM25(task.corpus)
    bm25.morphemes = lambda texts: kept[1]
    return mean_ndcg(task.qrels, dict(zip(task.queries, index.search(list(task.queries.values()), 10), strict=True)))


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="BEIR folders, or demo")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    choices = {name: (tags, 0.0) for name, tags in CHOICES.items()}
    choices |= {f"koir's words, pairs at {weight}": (CONTENT_TAGS, weight) for weight in PAIR_WEIGHTS}
    choices |= {"pairs alone": ((), 1.0), "* koir": (CONTENT_TAGS, bm25.PAIR_WEIGHT)}
    found = {name: {} for name in choices}
    for path in arguments.tasks:
        task = load_task(path, arguments.split)
        documents = tokenised([task.corpus[document] for document in sorted(task.corpus)])
        queries = tokenised(list(task.queries.values()))
        for name, choice in choices.items():
            found[name][task.name] = ndcg(task, documents, queries, *choice)
    for scores in found.values():
        scores["mean"] = float(np.mean(list(scores.values())))
    columns = list(next(iter(found.values())))
    rows = [[name, *[f"{scores[column]:.4f}" for column in columns]] for name, scores in found.items()]
    print(f"BM25 by what it counts, nDCG@10 on {arguments.split}\n" + table(["", *columns], rows))
    if arguments.json:
        text = json.dumps({"split": arguments.split, "ndcg_at_10": found}, ensure_ascii=False, indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
