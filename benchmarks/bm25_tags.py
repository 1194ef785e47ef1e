"""What BM25 should count, parts of speech, pairs of characters, beginnings: nDCG@10 on dev, one line a choice.

    .venv/bin/python benchmarks/bm25_tags.py TASK [TASK ...] [--split dev] [--json FILE]

Every text is tokenised once with all tags; a choice is then a filter, what a pair weighs beside a word, and how many
words at a document's beginning count twice. Choose on dev splits; the line marked * is what koir uses.
"""

import argparse
import json
import sys
import unicodedata
from pathlib import Path

import numpy as np
from kiwipiepy import Kiwi

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.evaluation.metrics import mean_ndcg
from koir.evaluation.tasks import load_task
from koir.retrieval import bm25
from koir.retrieval.morphemes import CONTENT_TAGS
from koir.text_tables import terminal_table

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
LEADS = (0, 4, 8, 12, 16, 24)


class Words:
    """The (word, tag) pairs of texts, each text tokenised once."""

    def __init__(self):
        self.kiwi, self.found = Kiwi(), {}

    def of(self, texts: list[str]) -> list[list[tuple[str, str]]]:
        """The pairs of every text."""
        missing = [text for text in dict.fromkeys(texts) if text not in self.found]
        clean = [unicodedata.normalize("NFC", text).encode("utf-8", "ignore").decode() for text in missing]
        for text, tokens in zip(missing, self.kiwi.tokenize(clean), strict=True):
            self.found[text] = [(token.form.lower(), token.tag) for token in tokens]
        return [self.found[text] for text in texts]


def ndcg(task, words: Words, tags: tuple[str, ...], pair_weight: float, lead_words: int) -> float:
    """nDCG@10 of koir's BM25 with words whose tags begin with one of `tags`, such a pair's weight and such leads."""
    bm25.PAIR_WEIGHT, bm25.LEAD_WORDS = pair_weight, lead_words
    bm25.morphemes = lambda texts, progress=None: [
        [word for word, tag in found if tag.startswith(tags)] for found in words.of(texts)
    ]
    index = bm25.BM25(task.corpus)
    return mean_ndcg(task.qrels, dict(zip(task.queries, index.search(list(task.queries.values()), 10), strict=True)))


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="BEIR folders, or demo")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    koirs = (CONTENT_TAGS, bm25.PAIR_WEIGHT, bm25.LEAD_WORDS)
    choices = {name: (tags, 0.0, 0) for name, tags in CHOICES.items()}
    choices |= {f"koir's words, pairs at {weight}": (CONTENT_TAGS, weight, 0) for weight in PAIR_WEIGHTS}
    choices |= {"pairs alone": ((), 1.0, 0)}
    choices |= {f"koir's words and pairs, {lead} words twice": (*koirs[:2], lead) for lead in LEADS}
    choices |= {"* koir": koirs}
    found = {name: {} for name in choices}
    words = Words()
    for path in arguments.tasks:
        task = load_task(path, arguments.split)
        for name, choice in choices.items():
            found[name][task.name] = ndcg(task, words, *choice)
    for scores in found.values():
        scores["mean"] = float(np.mean(list(scores.values())))
    columns = list(next(iter(found.values())))
    rows = [[name, *[f"{scores[column]:.4f}" for column in columns]] for name, scores in found.items()]
    print(f"BM25 by what it counts, nDCG@10 on {arguments.split}\n" + terminal_table(["", *columns], rows))
    if arguments.json:
        text = json.dumps({"split": arguments.split, "ndcg_at_10": found}, ensure_ascii=False, indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
