"""Turn official downloads and your own tables into training rows: read, clean, find hard negatives, write a report.

Example: python scripts/prepare_data.py --source korquad=KorQuAD_v1.0_train.json beir=demo --output_dir rows
A killed run goes on when the same command is given again. Train on the result with --train_data rows/train-*.jsonl.gz
"""

import json
import re
import shlex
import sys
import time
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.corpus.preparation import Plan, finish, options, prepare
from koir.corpus.report import families_table, sources_table, write_report
from koir.errors import exit_on_user_error, nearest
from koir.flags import parse, require
from koir.manifest import alone, check_outputs, origin, peak_memory_bytes, write_json
from koir.mining import Rules
from koir.sources.general import NAMED, UNREAD
from koir.sources.registry import KOE5, find, listing
from koir.sources.tally import WINDOW

SAID = ("not in this download", "an archive", UNREAD)  # beginnings of notes that are said, not only reported


@dataclass
class InputArguments:
    """What is read."""

    source: list[str] = field(
        default_factory=list,
        metadata={
            "help": "NAME=PATH, several or repeated: a source that --list shows and its download as it came; hidden "
            "files are left out"
        },
    )
    hub: list[str] = field(
        default_factory=list, metadata={"help": "hub datasets of rows, such as nlpai-lab/ko-triplet-v1.0"}
    )
    splits: list[str] = field(
        default_factory=lambda: ["train", "dev", "test"],
        metadata={"help": "which files are read, by the split that their names tell; a file that tells none is train"},
    )
    window: int = field(
        default=WINDOW, metadata={"help": "characters; of a longer paragraph, those around the answer are kept"}
    )
    columns: list[str] = field(
        default_factory=list,
        metadata={
            "help": "FIELD=NAME, several: what your tables, JSON records and hub datasets call a row's query, document "
            "or hard_negative; for every source that has such a column"
        },
    )
    list: bool = field(default=False, metadata={"help": "say for each source what it is, where to get it, its licence"})


@dataclass
class CleaningArguments:
    """What is dropped."""

    min_characters: int = field(default=4, metadata={"help": "of query and document"})
    max_characters: int = field(default=20_000, metadata={"help": "of query, document and hard negative"})
    near_duplicate_threshold: float = field(
        default=0.8, metadata={"help": "Jaccard similarity of character 3-grams, of query and of document; 1: off"}
    )
    exclude_tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "BEIR folders, or demo: rows that share a text or 13 words with their dev and test go"},
    )
    exclude_by: str = field(
        default="both",
        metadata={"choices": ["both", "queries"], "help": "both: right documents of the tasks count too"},
    )


@dataclass
class NegativeArguments:
    """Hard negatives, for rows whose source gives none."""

    negatives: str = field(
        default="none", metadata={"help": "none, or the first stage that finds them: bm25, dense:PATH, hybrid:PATH"}
    )
    num_negatives: int = field(default=1, metadata={"help": "hard negatives a row, at most"})
    depth: int = field(default=100, metadata={"help": "candidates taken from the first stage for a query"})
    skip_top: int = field(default=0, metadata={"help": "best candidates passed over, right answers not counted"})
    max_ratio: float = field(
        default=0.95, metadata={"help": "a candidate above this share of the right answer's score is left out"}
    )


@dataclass
class OutputArguments:
    """What is written."""

    output_dir: str | None = field(default=None, metadata={"help": "folder of train-*.jsonl.gz, report.md, README.md"})
    shard_rows: int = field(default=50_000, metadata={"help": "rows a shard"})
    seed: int = field(default=0, metadata={"help": "of MinHash, and of the report's samples"})
    json: str | None = field(default=None, metadata={"help": "also write the report to this file"})


@exit_on_user_error
def main(argv: list[str] | None = None) -> dict | None:
    """Prepare the rows, print the report's tables; returns report.json's content (None: complete already)."""
    groups = [InputArguments, CleaningArguments, NegativeArguments, OutputArguments]
    inputs, *rest = parse(groups, gathered(sys.argv[1:] if argv is None else argv), __doc__, recipes=False)
    if inputs.list:
        print(listing())
        return None
    plan, output = _plan(inputs, *rest), rest[-1]
    check_outputs(output.output_dir, output.json)
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    with alone(plan.output_dir, "writes"):
        return _in_folder(plan, output)


def _in_folder(plan: Plan, output: OutputArguments) -> dict | None:
    """What the command does once it has its folder to itself."""
    started = time.perf_counter()
    done = prepare(plan)
    if done is None:
        if output.json:
            write_json(Path(output.json), json.loads((plan.output_dir / "report.json").read_text(encoding="utf-8")))
        print(f"complete already: {plan.output_dir}")
        return None
    provenance = origin()
    facts = {"options": options(plan), "seed": plan.seed, "command": provenance["command"]}
    report = write_report(plan.output_dir, done, facts)
    seconds, memory = time.perf_counter() - started, peak_memory_bytes()
    run = {"kind": "rows", "key": done["key"], "rows": report["rows"], "fingerprint": report["fingerprint"]}
    finish(plan.output_dir, run | {"wall_seconds": seconds, "peak_memory_bytes": memory} | provenance)
    if output.json:
        write_json(Path(output.json), report)
    _say(report, plan, seconds, memory)
    return report


def gathered(argv: list[str]) -> list[str]:
    """The command line with what repeated --source and --hub flags name under one flag each."""
    rest, found, into = [], {"--source": [], "--hub": []}, None
    for word in argv:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            into = found.get(flag)
            if into is None:
                rest.append(word)
            elif equals:
                into.append(value)
        else:
            (rest if into is None else into).append(word)
    return rest + [word for flag, values in found.items() if values for word in (flag, *values)]


def _plan(
    inputs: InputArguments, cleaning: CleaningArguments, negatives: NegativeArguments, output: OutputArguments
) -> Plan:
    require(bool(inputs.source or inputs.hub), "--source", "nothing to read", "NAME=PATH (see --list), or --hub NAME")
    require(output.output_dir is not None, "--output_dir", "nothing", "the folder to write")
    require(output.seed >= 0, "--seed", str(output.seed), "0 or more")
    require(negatives.depth > 0, "--depth", str(negatives.depth), "at least 1")
    require(output.shard_rows > 0, "--shard_rows", str(output.shard_rows), "at least 1")
    require(inputs.window >= 100, "--window", str(inputs.window), "at least 100 characters")
    unknown = sorted(set(inputs.splits) - {"train", "dev", "test"})
    require(not unknown, "--splits", " ".join(unknown), "train, dev or test")
    named, out = [], Path(output.output_dir).resolve()
    for word in inputs.source:
        name, equals, path = word.partition("=")
        require(bool(equals and path), f"--source {word}", "no path", "NAME=PATH; --list shows the names")
        named.append((find(name), Path(path).expanduser()))
        whole = not re.search(r"[*?]", path) or named[-1][1].exists()
        require(whole, f"--source {word}", "a * that the shell left as it is", "a folder, or NAME=PATH for each file")
        inside = named[-1][1].resolve() in (out, *out.parents)
        found = f"a folder below {word}, which would read it"
        require(not inside, f"--output_dir {output.output_dir}", found, "one outside it")
    named += [(find("hub"), Path(name)) for name in inputs.hub]
    columns = _columns(inputs.columns, [source.name for source, _ in named])
    bounds = {"min_characters": cleaning.min_characters, "max_characters": cleaning.max_characters}
    rules = Rules(negatives.num_negatives, negatives.skip_top, negatives.max_ratio)
    rules.require_depth(negatives.depth)
    return Plan(
        inputs=named,
        output_dir=Path(output.output_dir),
        splits=tuple(inputs.splits),
        window=inputs.window,
        columns=columns,
        exclude_tasks=tuple(cleaning.exclude_tasks),
        exclude_by=cleaning.exclude_by,
        cleaning=bounds | {"near_duplicate_threshold": cleaning.near_duplicate_threshold},
        shard_rows=output.shard_rows,
        negatives=negatives.negatives,
        rules=rules,
        depth=negatives.depth,
        seed=output.seed,
    )


def _columns(words: list[str], sources: list[str]) -> dict[str, str]:
    columns = {}
    for word in words:
        field, equals, name = unicodedata.normalize("NFC", word).partition("=")
        require(bool(equals and name), f"--columns {word}", "no name", "FIELD=NAME, as query=질문")
        known = ("query", "document", "hard_negative")
        expected = f"one of {', '.join(known)}{nearest(field, known)}"
        require(field in known, f"--columns {word}", "an unknown field", expected)
        require(field not in columns, f"--columns {word}", f"{field} a second time", "one name for each field")
        columns[field] = name
    there = ", ".join(sources)
    require(not columns or bool(set(sources) & set(NAMED)), "--columns", there, f"one of {', '.join(NAMED)} to read")
    return columns


def _say(report: dict, plan: Plan, seconds: float, memory: int) -> None:
    print(f"\n{sources_table(report)}\n")
    if any(source["family"] in KOE5 for source in report["sources"]):
        print(f"{families_table(report)}\n")
    print(f"{report['rows']:,} rows, {report['pairs']:,} pairs; {seconds:.1f} s, {memory / 2**20:,.0f} MiB")
    hint = "; --negatives bm25 finds some" if plan.negatives == "none" and report["rows_without_hard_negative"] else ""
    print(f"rows without a hard negative: {report['rows_without_hard_negative']:,}{hint}")
    for source in report["sources"]:
        for note in (note for note in source["notes"] if note.startswith(SAID)):
            count = f" ({source['notes'][note]:,} records have it)" if note.startswith(UNREAD) else ""
            print(f"note: {source['source']}: {note}{count}")
    for source in report["sources"]:
        if left_out := source["negatives_left_out"]:
            why = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
            print(f"note: {source['source']}: {sum(left_out.values()):,} hard negatives were left out ({why})")
    tests = sum(source["records"].get("test", 0) for source in report["sources"])
    if tests:
        print(f"note: {tests:,} records come from test files; --splits train leaves such files out")
    reasons = [item for source in report["sources"] for item in source["dropped_in_cleaning"].items()]
    if shared := sum(count for reason, count in reasons if reason.startswith("document in ")):
        print(f"note: {shared:,} rows share a document with a task; --exclude_by queries keeps those of new queries")
    print(f"report: {plan.output_dir / 'report.md'}")
    print(f"train:  --train_data {shlex.quote(str(plan.output_dir))}/train-*.jsonl.gz")


if __name__ == "__main__":
    main()
