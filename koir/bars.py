"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

PAUSE = 30  # seconds before the first line of a log, and between two
LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
ENDLESS = "{desc}: {n_fmt} [{elapsed}, {rate_fmt}{postfix}]"  # where nobody knows how much there is


class _Lines:
    """What tqdm writes over itself on a terminal, one below the other."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def seen(rows: Iterable, bar: tqdm) -> Iterator:
    """The rows, each one moving the bar on."""
    for row in rows:
        yield row
        bar.update()


def progress_bar(desc: str | None, work: Iterable | None = None, **settings) -> tqdm:
    """tqdm on stderr, settings as there; where that is no terminal, a line every PAUSE seconds and one at the end.

    desc: what is counted; None for nothing to be seen.
    """
    if not sys.stderr.isatty():
        known = settings.get("total") is not None or hasattr(work, "__len__")
        settings |= {"file": _Lines(), "bar_format": LINE if known else ENDLESS, "leave": True}
        settings |= {"delay": PAUSE, "mininterval": PAUSE, "maxinterval": PAUSE}
    return tqdm(work, desc, disable=desc is None, dynamic_ncols=True, **settings)
