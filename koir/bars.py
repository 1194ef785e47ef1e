"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

PAUSE = 30  # seconds before the first line of a log, and between two
LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Lines:
    """What tqdm writes over itself on a terminal, one below the other."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(desc: str | None, work: Iterable | None = None, **settings) -> tqdm:
    """tqdm on stderr, settings as there; where that is no terminal, a line every PAUSE seconds and one at the end.

    desc: what is counted; None for nothing to be seen.
    """
    if not sys.stderr.isatty():
        settings |= {"file": _Lines(), "bar_format": LINE, "leave": True}
        settings |= {"delay": PAUSE, "mininterval": PAUSE, "maxinterval": PAUSE}
    return tqdm(work, desc, disable=desc is None, dynamic_ncols=True, **settings)
