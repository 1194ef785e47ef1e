"""Which of Kiwi's parts of speech should count as words for BM25: nDCG@10 on dev splits, one line a choice.

    .venv/bin/python benchmarks/bm25_tags.py TASK [TASK ...] [--split dev] [--json FILE]

Every text is tokenised once with all tags; a choice is then a filter. Choose on dev splits; the line marked * is what
koir uses.
"""

import argparse
import json
import sys
import unicodedata
from pathlib import Path

import bm25s
import numpy as np
from kiwipiepy import Kiwi

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.evaluation.metrics import mean_ndcg  # noqa: E402
from koir.evaluation.results import table  # noqa: E402
from koir.evaluation.tasks import load_task  # noqa: E402
from koir.retrieval import bm25  # noqa: E402
from koir.retrieval.ranking import as_run, best  # noqa: E402

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


def tokenised(texts: list[str]) -> list[list[tuple[str, str]]]:
    """(word, tag) pairs of every text."""
    clean = [unicodedata.normalize("NFC", text).encode("utf-8", "ignore").decode() for text in texts]
    return [[(token.form.lower(), token.tag) for token in tokens] for tokens in Kiwi().tokenize(clean)]


def ndcg(task, documents: list, queries: list, tags: tuple[str, ...]) -> float:
    """nDCG@10 of BM25 over the words whose tags begin with one of `tags`."""
    kept = [[[w for w, tag in words if tag.startswith(tags)] for words in texts] for texts in (documents, queries)]
    ids = sorted(task.corpus)
    vocabulary = {word: n for n, word in enumerate(sorted({word for words in kept[0] for word in words}))}
    index = bm25s.BM25()
    index.index(([[vocabulary[w] for w in words] for words in kept[0]], vocabulary), show_progress=False)
    run = {}
    for query, words in zip(task.queries, kept[1], strict=True):
        known = [vocabulary[word] for word in words if word in vocabulary]
        scores = index.get_scores_from_ids(known) if known else np.zeros(len(ids), np.float32)
        order = best(scores, 10)
        run[query] = as_run(ids, order[scores[order] > 0], scores[order][scores[order] > 0])
    return mean_ndcg(task.qrels, run)


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="BEIR folders, or demo")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    choices, found = CHOICES | {"* koir": bm25.CONTENT_TAGS}, {name: {} for name in [*CHOICES, "* koir"]}
    for path in arguments.tasks:
        task = load_task(path, arguments.split)
        documents = tokenised([task.corpus[document] for document in sorted(task.corpus)])
        queries = tokenised(list(task.queries.values()))
        for name, tags in choices.items():
            found[name][task.name] = ndcg(task, documents, queries, tags)
    for scores in found.values():
        scores["mean"] = float(np.mean(list(scores.values())))
    columns = list(next(iter(found.values())))
    rows = [[name, *[f"{scores[column]:.4f}" for column in columns]] for name, scores in found.items()]
    print(f"BM25 by parts of speech, nDCG@10 on {arguments.split}\n" + table(["", *columns], rows))
    if arguments.json:
        text = json.dumps({"split": arguments.split, "ndcg_at_10": found}, ensure_ascii=False, indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
