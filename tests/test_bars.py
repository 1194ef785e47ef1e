"""Progress: a bar where somebody looks, lines where a file is written."""

import sys

import pytest

from koir import bars


@pytest.fixture
def pauses(monkeypatch):
    monkeypatch.setattr(bars, "PAUSE", 0)


def test_a_log_has_lines_of_their_own(pauses, capsys):
    bar = bars.progress_bar("texts", total=2, unit="text", leave=False)
    bar.set_postfix({"loss": "1.0"}, refresh=False)
    bar.update(2)
    bar.close()
    error = capsys.readouterr().err
    assert "\r" not in error and error.endswith("\n")
    assert error.splitlines()[-1].startswith("texts: 100% 2/2 [") and "loss=1.0" in error


def test_what_nobody_can_count_beforehand_has_no_share(pauses, capsys):
    assert list(bars.progress_bar("reading", iter(range(3)))) == [0, 1, 2]
    assert capsys.readouterr().err.splitlines()[-1].startswith("reading: 3 [")


def test_what_takes_no_time_is_no_line_of_a_log(capsys):
    assert list(bars.progress_bar("texts", range(5))) == list(range(5))
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(bars.progress_bar("texts", range(5))) == list(range(5))
    assert "\r" in capsys.readouterr().err


def test_without_a_name_nothing_is_seen(pauses, capsys):
    assert list(bars.progress_bar(None, range(5))) == list(range(5))
    assert capsys.readouterr().err == ""
