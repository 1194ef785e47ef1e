"""What people read of an evaluation: a table a task in the terminal, and all metrics in Markdown."""

from collections.abc import Sequence

from koir.evaluation.metrics import KS
from koir.evaluation.significance import SIGNIFICANT
from koir.text_tables import markdown_table, terminal_table

SCORE_HEADER = ["", "nDCG@10 [95%]", "recall@10", "MRR@10"]
HEADER = [*SCORE_HEADER, "candidate recall", "ms/query", "nDCG@10 gained", "p", "won/lost/tied", "over"]
TIME_HEADER = ["time", "index s", "first stage ms/query", "reranker ms/query", "pairs/s"]
METRICS = ("ndcg", "recall", "precision", "f1", "mrr", "hit_rate")


def score_row(name: str, content: dict) -> list[str]:
    """A table row: name, nDCG@10 with its 95% interval, recall@10, MRR@10."""
    (scores,) = next(iter(content["scores"].values()))
    low, high = content["koir"]["intervals"]["ndcg_at_10"]
    ndcg = f"{scores['ndcg_at_10']:.3f} [{low:.3f}, {high:.3f}]"
    return [name, ndcg, f"{scores['recall_at_10']:.3f}", f"{scores['mrr_at_10']:.3f}"]


def report_row(content: dict) -> list[str]:
    """One line of the table: scores, the candidates' recall, time, and the gain over what it is compared with first."""
    koir = content["koir"]
    row = [*score_row(koir["name"], content), f"{koir['candidate_recall']:.3f}", f"{koir['latency']['total_ms']:.1f}"]
    if not koir["comparisons"]:
        return [*row, "", "", "", ""]
    return [*row, *_gain(koir["comparisons"][0])]


def time_row(content: dict) -> list[str]:
    """One line of the second table: seconds to build or open the index, what each stage takes, the reranker's speed."""
    koir = content["koir"]
    cells = [koir["latency"][name] for name in ("index_seconds", "first_stage_ms", "reranker_ms", "pairs_per_second")]
    return [koir["name"], *["" if cell is None else f"{cell:,.1f}" for cell in cells]]


def _gain(found: dict) -> list[str]:
    counts = f"{found['won']}/{found['lost']}/{found['tied']}"
    return [f"{found['difference']:+.3f}{_at(found)}", f"{found['p']:.4f}", counts, found["against"]]


def rank_of(found: dict) -> str:
    """The rank that a comparison looks down to: 10, or less for lists that end before."""
    return found.get("metric", "ndcg_at_10").rpartition("_")[2]


def _at(found: dict) -> str:
    return "" if rank_of(found) == "10" else f" @{rank_of(found)}"


def title(content: dict) -> str:
    """The task's name, split and sizes."""
    (split,) = content["scores"]
    koir = content["koir"]
    return f"{content['task_name']}, {split}: {koir['queries']:,} queries, {koir['documents']:,} documents"


def terminal(contents: Sequence[dict]) -> str:
    """One task's pipelines as two plain tables, scores and times, with warnings beneath them."""
    lines = [title(contents[0]), terminal_table(HEADER, [report_row(content) for content in contents]), ""]
    lines.append(terminal_table(TIME_HEADER, [time_row(content) for content in contents]))
    return "\n".join(lines + _ties(contents) + warnings(contents))


def _ties(contents: Sequence[dict]) -> list[str]:
    tied = [f"{c['koir']['name']} {c['koir']['tied_queries']:,}" for c in contents if c["koir"]["tied_queries"]]
    return ["queries with equal scores among the first eleven, ordered by id: " + ", ".join(tied)] if tied else []


def warnings(contents: Sequence[dict]) -> list[str]:
    """What rerankers do to one task: a line for each pipeline that is significantly worse than its own first stage,
    and one where none is significantly better."""
    reranked = [content["koir"] for content in contents if content["koir"]["pipeline"]["reranker"] is not None]
    lines, better = [], False
    for koir in reranked:
        own, task = koir["comparisons"][0], contents[0]["task_name"]
        if own["p"] < SIGNIFICANT:
            better = better or own["difference"] > 0
            lines += worse(koir["name"], "its own first stage", task, own)
    if reranked and not better:
        where = f"{contents[0]['task_name']} ({reranked[0]['queries']:,} queries)"
        lines.append(f"no gain of a reranker over its first stage is significant on {where}")
    return lines


def worse(name: str, called: str, task: str, found: dict) -> list[str]:
    """The warning that a model's mean nDCG is below that of something `called` so; none where it is not.

    found: as `pipeline.comparison` gives it.
    """
    if found["difference"] > -1e-9:
        return []
    how = "significantly worse" if found["p"] < SIGNIFICANT else "worse"
    gained = f"{found['difference']:+.3f}{_at(found)}"
    return [f"WARNING: {name} is {how} than {called} on {task} ({gained}, p = {found['p']:.4f})"]


def markdown(tasks: Sequence[Sequence[dict]]) -> str:
    """All tasks: the joint table, times, every comparison, and every metric at every cut-off."""
    parts = ["# Evaluation", ""]
    for contents in tasks:
        parts += [f"## {title(contents[0])}", "", _markdown(HEADER, [report_row(content) for content in contents]), ""]
        parts += [_markdown(TIME_HEADER, [time_row(content) for content in contents]), ""]
        parts += [f"- {line}" for line in _ties(contents) + warnings(contents)] + [""]
        pairs = [
            [
                content["koir"]["name"],
                found["against"],
                *_gain(found)[:3],
                "[{:+.3f}, {:+.3f}]".format(*found["interval"]),
            ]
            for content in contents
            for found in content["koir"]["comparisons"]
        ]
        if pairs:
            header = ["pipeline", "over", "nDCG@10 gained", "p", "won/lost/tied", "95%"]
            parts += ["Paired on the same queries:", "", _markdown(header, pairs), ""]
        for metric in METRICS:
            rows = []
            for content in contents:
                (scores,) = next(iter(content["scores"].values()))
                rows.append([content["koir"]["name"], *[f"{scores[f'{metric}_at_{k}']:.4f}" for k in KS]])
            parts += [_markdown([metric, *[f"@{k}" for k in KS]], rows), ""]
    parts.append(
        "Candidate recall: of what the first stage hands to the reranker. F1 is of mean precision and mean recall, as "
        "published tables have it."
    )
    return "\n".join([*parts, ""])


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(header, rows, right=range(1, len(header)))
