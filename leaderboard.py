"""The board: results/ as a page (streamlit run leaderboard.py) or as Markdown (python leaderboard.py --export FILE).

    .venv/bin/streamlit run leaderboard.py -- --results DIR --outputs DIR
    .venv/bin/python leaderboard.py --export docs/leaderboard.md [--results DIR] [--lang ko]

--results DIR   results of evaluate.py, published tables under DIR/published (default: results)
--outputs DIR   training runs, for their curves (default: outputs)
--export FILE   write the tables as Markdown, and one into README.md (README.ko.md) where it has
                <!-- leaderboard --> markers
--lang en|ko    language of what is exported (default: en)
"""

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from koir.board import export
from koir.board.labels import verbatim
from koir.board.rows import read_board
from koir.errors import FlagError, UserError, exit_on_user_error, nearest
from koir.evaluation.stored import signature

ROOT = Path(__file__).resolve().parent
VIEWS = ("overview", "cost", "pipeline", "compare", "training")
READMES = {"en": "README.md", "ko": "README.ko.md"}
FLAGS = {"results": "results", "outputs": "outputs", "export": None, "lang": "en"}


def flags(argv: list[str]) -> argparse.Namespace:
    """The flags of this page. argv: sys.argv; where another program's stands there (a test runner's), all defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, default in FLAGS.items():
        parser.add_argument(f"--{name}", default=default)
    ours = argv[1:] if Path(argv[0]).name == Path(__file__).name else []
    if "--help" in ours or "-h" in ours:
        print(__doc__)
        raise SystemExit(0)
    try:
        found, rest = parser.parse_known_args(ours)
    except argparse.ArgumentError as error:
        raise FlagError(error.argument_name, "nothing", "a value") from None
    if rest:
        expected = ", ".join(f"--{name}" for name in FLAGS) + nearest(rest[0], [f"--{name}" for name in FLAGS])
        raise FlagError(rest[0], "an unknown flag", expected)
    if found.lang not in READMES:
        raise FlagError("--lang", found.lang, "en or ko")
    return found


def page(settings: argparse.Namespace) -> None:
    """Draw the page that the URL asks for."""
    import streamlit as st

    from koir.board import state
    from koir.board.labels import LANGUAGES, words
    from koir.board.page import STYLE, Page, load

    st.set_page_config(page_title="koir", page_icon="🔎", layout="wide")
    st.html(STYLE)
    state.follow_url()
    results, outputs = Path(settings.results), Path(settings.outputs)
    title, choice = st.columns([4, 1])
    with choice:
        language = state.pick(
            st.radio, "Language / 언어", list(LANGUAGES), "lang", shown=LANGUAGES.get, horizontal=True
        )
    word = words(language)
    title.title(word["title"], anchor=False)
    title.caption(word["subtitle"])

    stamp = signature(results, outputs)
    shown = Page(load(stamp, str(results), str(ROOT / "results")), word, language, results, outputs, stamp)
    view = state.pick(
        st.radio, word["view"], VIEWS, "view", shown=word.get, horizontal=True, label_visibility="collapsed"
    )
    _warnings(shown)
    if not shown.board.ours and view != "training":
        st.info(word["empty"])
        st.write(word["empty_run"])
        there = "" if results == Path(FLAGS["results"]) else f" --output_dir {shlex.quote(str(results))}"
        st.code(f"bash v1.1/scripts/finetune.sh\n.venv/bin/python evaluate.py{there}", language="bash")
    if shown.board.ours or view == "training" or (view in ("overview", "cost") and shown.board.published):
        _view(view)(shown)


def _view(name: str) -> Callable:
    """The function that draws a view; only its own module is loaded."""
    if name in ("overview", "cost"):
        from koir.board import overview

        return getattr(overview, name)
    return getattr(importlib.import_module(f"koir.board.{name}"), name)


def _warnings(shown: object) -> None:
    """Name what is not there or could not be read, and what is kept apart."""
    import streamlit as st

    from koir.board.page import show_broken

    if not shown.results.is_dir():
        st.error(verbatim(str(_no_folder(shown.results))))
    if shown.board.broken:
        show_broken(shown.board.broken, shown.word["broken"])
    if shown.board.clashes:
        st.warning(shown.word["clashes"].format(names=verbatim(", ".join(shown.board.clashes))))


def _no_folder(results: Path | str) -> FlagError:
    return FlagError(f"--results {results}", "no such folder", "what evaluate.py --output_dir names")


@exit_on_user_error
def main() -> None:
    """The export; a page is drawn by Streamlit."""
    settings = flags(sys.argv)
    if settings.export is None:
        expected = "--export FILE, or .venv/bin/streamlit run leaderboard.py"
        raise FlagError("leaderboard.py", "neither a browser's page nor an export", expected)
    if not Path(settings.results).is_dir():
        raise _no_folder(settings.results)
    board = read_board(Path(settings.results), ROOT / "results")
    export.write(board, settings.export, settings.lang, ROOT / READMES[settings.lang])


def in_streamlit() -> bool:
    """Whether Streamlit is running this file."""
    if "streamlit" not in sys.modules:
        return False
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    return get_script_run_ctx(suppress_warning=True) is not None


def draw() -> None:
    """The page, or the user's mistake on it."""
    import streamlit as st

    try:
        page(flags(sys.argv))
    except UserError as error:
        st.error(verbatim(str(error)))


if __name__ == "__main__":
    if in_streamlit():
        draw()
    else:
        main()
