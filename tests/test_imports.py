"""The import rule of the design: who may import whom."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Reading order. A module imports only what stands above it; a package's modules share its place unless named.
ORDER = [
    "errors",
    "bars",
    "text_tables",
    "manifest",
    "row_files",
    "triplets",
    "evaluation.hub",
    "evaluation.tasks",
    "duplicates",
    "cleaning",
    "sources",
    "yaml_text",
    "flags",
    "zero",
    "kernels.bfloat16",
    "arguments",
    "tokens",
    "kernels.inference",
    "loading",
    "kernels.products",
    "kernels.dropout",
    "kernels.lookup",
    "kernels.attention",
    "kernels.unpadded",
    "kernels.install",
    "encoder",
    "lora",
    "batches",
    "losses",
    "ranking_losses",
    "gather",
    "contrast",
    "lanes",
    "gradcache",
    "kernels.compiled",
    "budget",
    "sampling",
    "passages",
    "reranker",
    "retrieval.ranking",
    "retrieval.score_maps",
    "retrieval.morphemes",
    "retrieval.bm25",
    "retrieval.dense",
    "retrieval.hybrid",
    "retrieval.milvus",
    "retrieval.stages",
    "retrieval.opening",
    "mining",
    "corpus.negatives",
    "corpus.shards",
    "corpus.preparation",
    "corpus.report",
    "evaluation.significance",
    "evaluation.metrics",
    "evaluation.results",
    "evaluation.published",
    "evaluation.stored",
    "board.labels",
    "board.rows",
    "board.standing",
    "board.tables",
    "board.texts",
    "board.export",
    "board.state",
    "board.charts",
    "board.page",
    "board.overview",
    "board.pipeline",
    "board.compare",
    "board.training",
    "evaluation.pipeline",
    "runs.interruptions",
    "runs.folder",
    "runs.progress",
    "chunked_steps",
    "runs.checkpoints",
    "runs.trainer",
    "evaluation.fitting",
    "evaluation.reranking",
    "evaluation.reproduction",
    "evaluation.report",
    "evaluation.picture",
    "evaluation.joint",
    "evaluation.arguments",
    "runs.averaging",
    "training",
    "runs.checks",
    "runs.command",
    "serving.schemas",
    "serving.problems",
    "reranker_arguments",
    "groups",
    "reranker_training",
    "runs.encoders",
    "runs.rerankers",
    "serving.batching",
    "serving.models",
    "serving.search",
    "serving.registry",
    "serving.loading",
    "serving.meters",
    "serving.door",
    "serving.routes",
    "serving.page",
    "serving.app",
    "demo",
]
PACKAGES = {"kernels", "sources", "corpus", "retrieval", "evaluation", "board", "runs", "serving", "demo"}
WITHOUT_TORCH = ["row_files", "triplets", "duplicates", "cleaning", "sources", "mining", "evaluation.metrics",
                 "evaluation.significance", "evaluation.results", "evaluation.published", "evaluation.stored",
                 "board"]  # fmt: skip
MODULES = {
    ".".join(file.relative_to(ROOT / "koir").with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "koir").rglob("*.py"))
}
COMMANDS = [
    *[file for folder in ("v1", "v1.1", "reranker", "scripts") for file in sorted((ROOT / folder).rglob("*.py"))],
    *[ROOT / name for name in ("evaluate.py", "leaderboard.py") if (ROOT / name).exists()],
]


@functools.cache
def imports(file, nested=True):
    """Dotted names that a file imports: `from a.b import c` gives a.b and a.b.c. nested: inside functions too."""
    found = set()

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}, line {child.lineno}: relative import"
                found.add(child.module)
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif nested or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                walk(child)

    walk(ast.parse(file.read_text(encoding="utf-8")))
    return frozenset(found)


def of_koir(names):
    """The koir modules among dotted names: `koir.errors.nearest` is `errors`."""
    bare = {name.removeprefix("koir.") for name in names if name.startswith("koir.")}
    return {name for name in bare if name in MODULES and name not in PACKAGES}


def roots(names):
    return {name.partition(".")[0] for name in names}


def place(module):
    if module in ORDER:
        return ORDER.index(module)
    return ORDER.index(module.partition(".")[0])  # a file of sources/


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__" and m not in PACKAGES])
def test_a_module_imports_only_what_stands_above_it(module):
    below = {other for other in of_koir(imports(MODULES[module])) if place(other) > place(module)}
    assert below == set()


@pytest.mark.parametrize("package", sorted({"__init__", *PACKAGES} & set(MODULES)))
def test_a_package_imports_nothing_but_the_standard_library_by_itself(package):
    assert roots(imports(MODULES[package])) <= sys.stdlib_module_names


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_import_koir_and_never_each_other(file):
    ours = {path.stem for path in COMMANDS} | {path.name for path in ROOT.iterdir() if path.is_dir()} | {"v1"}
    assert roots(imports(file)) & ours <= {"koir"}


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
def test_the_library_imports_no_command(module):
    ours = {path.stem for path in COMMANDS} | {"v1", "scripts", "tests", "benchmarks"}
    assert roots(imports(MODULES[module])) & (ours - {"reranker"}) == set()


def test_the_leaderboard_imports_what_reads_results_and_draws_them():
    """The page and its parts know results, published tables and tasks' texts; never models, training or retrieval."""
    known = {"errors", "manifest", "evaluation.results", "evaluation.significance", "evaluation.published"}
    known |= {"evaluation.stored", "evaluation.tasks", "text_tables"}
    board = {module for module in MODULES if module.startswith("board.")}
    for file in [ROOT / "leaderboard.py", *(MODULES[module] for module in board)]:
        assert of_koir(imports(file)) <= known | board


def test_losses_import_torch_alone():
    for name in {"losses", "ranking_losses"} & MODULES.keys():
        assert roots(imports(MODULES[name])) - sys.stdlib_module_names == {"torch"}


def reached(module):
    """The koir modules that importing one runs, itself included."""
    waiting, seen = [module], set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += of_koir(imports(MODULES[module], nested=False))
    return seen


def matching(names):
    return sorted(m for m in MODULES if m in names or m.partition(".")[0] in names)


@pytest.mark.parametrize("module", matching(WITHOUT_TORCH))
def test_no_torch_is_imported_on_the_way(module):
    guilty = {m for m in reached(module) if roots(imports(MODULES[m], nested=False)) & {"torch", "transformers"}}
    assert guilty == set()


def test_no_torch_is_loaded_by_them_in_fact():
    names = ", ".join(f"koir.{module}" for module in matching(WITHOUT_TORCH))
    code = f"import sys\nimport {names}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr


@pytest.mark.parametrize("word", ["utils", "util", "common", "helper", "helpers", "manager", "misc"])
def test_no_module_has_a_name_that_says_nothing(word):
    assert [m for m in MODULES if word in m.replace(".", "_").split("_")] == []
    assert [file for file in COMMANDS if word in file.stem.split("_")] == []
