"""torchrun with last words: which process ended first, or hung. Its status is that process's; launch.sh runs it.

SIGTERM is passed on to the processes, which have all the time that the machine leaves them to write a checkpoint.
"""

import logging
import signal
import sys
from collections.abc import Mapping, Sequence

TOGETHER = 5  # seconds within which failures count as one; what has not ended 30 s after the first, torchrun kills
TERMINATED = (128 + signal.SIGTERM, -signal.SIGTERM)


def last_words(failures: Mapping) -> tuple[int, list[str]]:
    """The exit status of what failed first, and a line on it and on each process that hung.

    failures: global rank -> torchrun's ProcessFailure: `exitcode`, negative for a signal, and `timestamp` in seconds.
    """
    begun = min(failure.timestamp for failure in failures.values())
    first = [rank for rank, failure in failures.items() if failure.timestamp < begun + TOGETHER]
    killed = [rank for rank in first if failures[rank].exitcode < 0 and failures[rank].exitcode not in TERMINATED]
    rank = (killed or first)[0]
    code, lines = failures[rank].exitcode, []
    if code < 0 and code not in TERMINATED:
        lines.append(f"error: rank {rank} was ended by {signal.Signals(-code).name}")
    elif code not in TERMINATED:
        lines.append(f"error: rank {rank} ended first, with status {code}")
    hung = [rank for rank in failures.keys() - first if failures[rank].exitcode == -signal.SIGKILL]
    lines += [f"error: rank {rank} hung: it did not end after the others, and was killed" for rank in sorted(hung)]
    return (128 - code if code < 0 else code), lines


def _pass_on(number: int, _) -> None:
    import psutil

    children = psutil.Process().children()
    for child in children:
        child.send_signal(number)
    if not children:
        raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun's command line; the exit status."""
    signal.signal(signal.SIGTERM, _pass_on)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # until torchrun has its own
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # what torchrun says of the same
    try:
        run.main(["--signals_to_handle", "SIGINT,SIGHUP,SIGQUIT", *(sys.argv[1:] if argv is None else argv)])
    except ChildFailedError as error:
        status, lines = last_words(error.failures)
        print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr)
        return status
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
