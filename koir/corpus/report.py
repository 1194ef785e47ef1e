"""What a folder of rows holds, read back from its shards: tables, a picture of lengths, samples, a dataset card."""

import hashlib
import html
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from koir.bars import progress_bar
from koir.corpus.shards import read_rows
from koir.manifest import write_json, write_text
from koir.sources.registry import KOE5
from koir.text_tables import markdown_table
from koir.triplets import check_row

SAMPLES = 2  # of each source
FIELDS = ("query", "document", "hard_negative")


@dataclass
class Measured:
    """Rows, pairs and lengths of one source, by its label in the rows."""

    rows: int = 0
    pairs: int = 0
    without_negative: int = 0
    lengths: dict[str, Counter] = field(default_factory=lambda: {name: Counter() for name in FIELDS})
    samples: list[dict] = field(default_factory=list)


def measure(folder: Path, seed: int) -> tuple[dict[str, Measured], dict[str, str]]:
    """(by source label, {shard: sha256 of its rows}) of every shard; each row passes `check_row` again."""
    found: dict[str, Measured] = {}
    shards = {}
    draw = random.Random(seed)
    for shard in progress_bar("report", sorted(folder.glob("train-*.jsonl.gz"))):
        fingerprint = hashlib.sha256()
        for number, row in enumerate(read_rows(shard), 1):
            pairs = check_row(row, f"{shard}, line {number}")
            of = found.setdefault(row["source"], Measured())
            of.rows += 1
            of.pairs += len(pairs)
            of.without_negative += not pairs[0]["hard_negatives"]
            of.lengths["query"][len(pairs[0]["query"])] += 1
            of.lengths["document"].update(len(pair["document"]) for pair in pairs)
            of.lengths["hard_negative"].update(map(len, pairs[0]["hard_negatives"]))
            for pair in pairs:
                fingerprint.update(repr(sorted(pair.items())).encode())
            if len(of.samples) < SAMPLES:
                of.samples.append(row)
            elif (place := draw.randrange(of.rows)) < SAMPLES:  # every row equally likely
                of.samples[place] = row
        shards[shard.name] = fingerprint.hexdigest()
    return found, shards


def write_report(folder: Path, done: dict, facts: dict) -> dict:
    """Write report.json, report.md, lengths.svg and README.md into the folder; returns report.json's content.

    done: what `prepare` returned. facts: options and the command, to be shown.
    """
    measured, shards = measure(folder, facts["seed"])
    rows = sum(of.rows for of in measured.values())
    fingerprint = hashlib.sha256("".join(shards.values()).encode()).hexdigest()
    content = {
        "rows": rows,
        "pairs": sum(of.pairs for of in measured.values()),
        "rows_without_hard_negative": sum(of.without_negative for of in measured.values()),
        "families": families(done["parts"]),
        "sources": done["parts"],
        "labels": {label: _label(of) for label, of in measured.items()},
        "cleaning": done["cleaning"],
        "mining": done["mining"],
        "shape": done["shape"],
        "fingerprint": fingerprint,
        "shards": shards,
        **facts,
    }
    write_json(folder / "report.json", content)
    texts = {"lengths.svg": _picture(measured), "report.md": _markdown(content, measured), "README.md": _card(content)}
    for name, text in texts.items():
        write_text(folder / name, text)
    return content


def families(parts: list[dict]) -> list[dict]:
    """Rows of each family beside those that KoE5 took, in KoE5's order, the families that it did not have last."""
    kept = Counter()
    for part in parts:
        kept[part["family"]] += part["kept"]
    table = [
        {"family": f, "rows": kept[f], "koe5": KOE5.get(f), "difference": kept[f] - KOE5[f] if f in KOE5 else None}
        for f in [*KOE5, *sorted(set(kept) - set(KOE5))]
    ]
    same = [line for line in table if line["koe5"] is not None]
    total = {"family": "all of KoE5's", "rows": sum(line["rows"] for line in same), "koe5": sum(KOE5.values())}
    return [*table, total | {"difference": total["rows"] - total["koe5"]}]


def _label(of: Measured) -> dict:
    lengths = {name: {"p5": q[0], "median": q[1], "p95": q[2]} for name in FIELDS if (q := quantiles(of.lengths[name]))}
    return {"rows": of.rows, "pairs": of.pairs, "without_hard_negative": of.without_negative, "characters": lengths}


def quantiles(counts: Counter) -> list[int]:
    """The values below which 5%, half and 95% of a counter's occurrences lie; nothing for an empty counter."""
    total, wanted, passed, found = sum(counts.values()), [0.05, 0.5, 0.95], 0, []
    for value in sorted(counts):
        passed += counts[value]
        while wanted and passed >= wanted[0] * total:
            found.append(value)
            wanted.pop(0)
    return found


# --- for people ------------------------------------------------------------------------------------------------------


def _table(header: list[str], rows: list[list]) -> str:
    shown = [[f"{cell:,}" if isinstance(cell, int) else str(cell or "") for cell in row] for row in rows]
    return markdown_table(header, shown)


def families_table(content: dict) -> str:
    """Rows beside KoE5's, one family a line, as Markdown."""
    lines = [[f["family"], f["rows"], f["koe5"], _signed(f["difference"])] for f in content["families"]]
    return _table(["family", "rows", "KoE5", "difference"], lines)


def _signed(number: int | None) -> str:
    return "" if number is None else f"{number:+,}"


def sources_table(content: dict) -> str:
    """One source a line: what was read, dropped, cleaned away, kept."""
    lines = [
        [s["source"], sum(s["records"].values()), s["questions"] or "", sum(s["dropped"].values()), s["rows"],
         sum(s["dropped_in_cleaning"].values()), s["kept"], _words(s["records"])]
        for s in content["sources"]
    ]  # fmt: skip
    columns = ["source", "records", "questions", "dropped", "rows", "cleaned away", "kept", "records by split"]
    return _table(columns, lines)


def _words(counts: dict) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _markdown(content: dict, measured: dict[str, Measured]) -> str:
    steps = {"reading": "dropped", "cleaning": "dropped_in_cleaning", "hard negatives": "negatives_left_out"}
    reasons = [
        [s["source"], step, reason, count, "; ".join(s["dropped_first_at"].get(reason, [])[:1])]
        for s in content["sources"]
        for step, name in (steps | {"note": "notes"}).items()
        for reason, count in s[name].items()
    ]
    lengths = [
        [label, of["rows"], *["/".join(map(str, of["characters"].get(name, {}).values())) for name in FIELDS]]
        for label, of in content["labels"].items()
    ]
    origins = [[s["source"], s["licence"], s["where"], s["key"], len(s["files"])] for s in content["sources"]]
    samples = "\n\n".join(
        f"### {label}\n\n" + "\n\n".join(_sample(row) for row in of.samples) for label, of in measured.items()
    )
    parts = [
        f"# {content['rows']:,} rows, {content['pairs']:,} pairs",
        f"Without a hard negative: {content['rows_without_hard_negative']:,}. Fingerprint: `{content['fingerprint']}`.",
        f"Command: `{content['command']}`",
        "## Rows beside KoE5's\n\n" + families_table(content),
        "## Sources\n\nRecords are entries of the files; where one can hold many questions, questions are dropped.\n\n"
        + sources_table(content),
        "## What was dropped, and why\n\n" + _table(["source", "step", "reason", "count", "first at"], reasons),
        *_mining(content["mining"]),
        "## Lengths\n\nCharacters: 5% / median / 95%.\n\n" + _table(["label", "rows", *FIELDS], lengths),
        "![lengths](lengths.svg)",
        "## Where from\n\n" + _table(["source", "licence", "from", "key of what was read", "files"], origins),
        "## Samples\n\n" + samples,
    ]
    return "\n\n".join(parts) + "\n"


def _mining(mining: dict | None) -> list[str]:
    if not mining:
        return []
    scores = mining["scores"]
    bins = [
        [f"{edge:.3g}", right, wrong]
        for edge, right, wrong in zip(scores["edges"], scores["positives"], scores["negatives"], strict=False)
    ]
    counts = _table(["what", "count"], [[name, count] for name, count in mining["counts"].items()])
    return [f"## Mining\n\n{counts}", _table(["score from", "right answers", "hard negatives"], bins)]


def _sample(row: dict) -> str:
    lines = []
    for name in FIELDS:
        texts = row[name] if isinstance(row[name], list) else [row[name]]
        shown = " / ".join((text or "(none)").replace("\n", " ")[:200] for text in texts[:2])
        lines.append(f"- {name}: {shown}" + (f" (and {len(texts) - 2} more)" if len(texts) > 2 else ""))
    return "\n".join(lines)


def _card(content: dict) -> str:
    sizes = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**9, "n>1M")]
    size = next(name for bound, name in sizes if content["rows"] < bound)
    licences = "\n".join(dict.fromkeys(f"- {s['source']}: {s['licence']}" for s in content["sources"]))
    return f"""---
language:
- ko
license: other
license_name: as-the-sources
task_categories:
- sentence-similarity
- text-retrieval
size_categories:
- {size}
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.jsonl.gz
dataset_info:
  features:
{_features(content["shape"])}
---

# {content["rows"]:,} Korean retrieval rows

Columns: `query`, `document` (a right answer, or a list of them), `hard_negative` (a wrong one that looks right, a list,
or null), `source`, `id`. Made with koir's `scripts/prepare_data.py`; `report.md` says what was read, dropped and why.

{families_table(content)}

## Licences

These rows are made of other people's data. **Some sources forbid passing rows on: read this list before a push.**

{licences}

    datasets.load_dataset("json", data_files="train-*.jsonl.gz")        # or the folder
    hf upload NAME FOLDER --repo-type dataset                            # report and card go along
"""


def _features(shape: dict) -> str:
    """The columns' types, so that `datasets` need not guess them from a first shard without hard negatives."""
    columns = {"query": (False, "string"), "document": (shape["documents"], "string")}
    columns["hard_negative"] = (shape["negatives"], "string")
    if shape["scores"]:
        columns["document_score"] = (shape["documents"], "float64")
        columns["hard_negative_score"] = (shape["negatives"], "float64")
    columns |= {"source": (False, "string"), "id": (False, "string")}
    lines = (f"  - name: {name}\n    {'list' if many else 'dtype'}: {kind}" for name, (many, kind) in columns.items())
    return "\n".join(lines)


def _picture(measured: dict[str, Measured]) -> str:
    """Histograms of characters, doubling from bar to bar, one panel a column of the rows."""
    panels, top = [], 30
    for name in FIELDS:
        bins = Counter()
        for of in measured.values():
            for length, count in of.lengths[name].items():
                bins[length.bit_length()] += count
        most, bars = max(bins.values(), default=1), []
        for bit in range(1, 16):
            high = 90 * bins[bit] / most
            x, y = 20 + 40 * (bit - 1), top + 110 - high
            title = f"{2 ** (bit - 1)} to {2**bit - 1} characters: {bins[bit]:,}"
            bars.append(
                f'<rect x="{x}" y="{y:.1f}" width="36" height="{high:.1f}" fill="#4477aa"><title>{title}</title>'
            )
            bars.append(f'</rect><text x="{x + 18}" y="{y - 3:.1f}" text-anchor="middle">{_short(bins[bit])}</text>')
            bars.append(f'<text x="{x + 18}" y="{top + 124}" text-anchor="middle">{2 ** (bit - 1)}</text>')
        panels.append(
            f'<text x="20" y="{top}" font-weight="bold">{html.escape(name)}, characters</text>{"".join(bars)}'
        )
        top += 160
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{top}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )


def _short(count: int) -> str:
    return "" if not count else str(count) if count < 1000 else f"{count / 1000:.0f}k"
