"""What a user can do wrong, said in one line: where, what was found, what was expected."""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake that the user can mend; never a bug of ours, so it is shown without a traceback.

    place: file and line, flag or field. found: what stood there. expected: what should stand there.
    """

    def __init__(self, place: str, found: str, expected: str):
        super().__init__(place, found, expected)
        self.place, self.found, self.expected = place, found, expected

    def __str__(self) -> str:
        return f"{self.place}: found {self.found}; expected {self.expected}"


class FlagError(UserError):
    """A flag or recipe key is unknown, of the wrong type, or contradicts another."""


class RowError(UserError):
    """A training row, or the file that should hold rows, is not what `triplets.py` accepts."""


class SourceError(UserError):
    """A raw release is missing, incomplete, unsafe to open, or not in the shape that its source reads."""


class TaskError(UserError):
    """An evaluation task is missing, incomplete or inconsistent."""


class ModelError(UserError):
    """A model folder or hub name cannot be loaded, or is of a kind that cannot be trained here."""


class ResultError(UserError):
    """A result file, a published table or a file beside them is broken or incomplete."""


class RunError(UserError):
    """A run folder is missing, incomplete, or would be overwritten."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint "; did you mean X?" for the closest of `known`, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def exit_on_user_error(main: Callable) -> Callable:
    """Decorate a command's `main`: a `UserError` becomes one line on stderr and exit status 2, Ctrl-C one and 130."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("stopped by the keyboard", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped
