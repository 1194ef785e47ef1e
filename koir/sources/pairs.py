"""Sentence pairs become rows: inference by premise, similarity by score."""

from collections.abc import Iterable, Iterator

from koir.sources.tally import Tally

SCORE = 4.0  # of 5: "mostly equivalent, some unimportant details differ" and better


def inferences(found: Iterable[tuple[dict, str]], source: str, tally: Tally) -> Iterator[tuple[dict, str]]:
    """premise -> each hypothesis that it entails; those that contradict it are the hard negatives.

    found: ({premise, hypothesis, label}, place), all of a premise wherever they stand. Neutral hypotheses, and
    contradictions of a premise that entails none, are dropped and counted.
    """
    premises: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for pair, place in found:
        label = pair["label"]
        if label in ("entailment", "contradiction"):
            premises.setdefault(pair["premise"], {}).setdefault(label, []).append((pair["hypothesis"], place))
        else:
            tally.drop("neutral" if label == "neutral" else "no label that annotators agreed on", place)
    for premise, hypotheses in premises.items():
        contradictions = hypotheses.get("contradiction", [])
        negatives = list(dict.fromkeys(hypothesis for hypothesis, _ in contradictions))
        if "entailment" in hypotheses and contradictions:
            tally.notes["contradictions that became hard negatives"] += len(contradictions)
        for hypothesis, place in hypotheses.get("entailment", []):
            yield {"query": premise, "document": hypothesis, "hard_negative": negatives, "source": source}, place
        if contradictions and "entailment" not in hypotheses:
            for _, place in contradictions:
                tally.drop("a contradiction of a premise that entails nothing", place)


def similar(
    first: str, second: str, score: float, place: str, tally: Tally, source: str, number: str = ""
) -> Iterator[dict]:
    """One sentence -> the other, where their similarity is at least SCORE of 5."""
    if score < SCORE:
        tally.drop(f"similarity below {SCORE} of 5", place)
        return
    yield {"query": first, "document": second, "source": source, "id": number}
