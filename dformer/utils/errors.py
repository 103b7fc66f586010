"""The error of bad input, and how the tools show it."""

import functools
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

USER_ERROR = 2  # exit code
INTERRUPTED = 130  # exit code of shells for SIGINT
NO_DETECTRON2 = "Detectron2 is not installed: run `dformer install-detectron2`, which needs no compiler"


class UserError(ValueError):
    """Report bad input: the message names the file or key, says what is wrong and what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a clause `, did you mean "x"?` for a misspelt `word`; empty if nothing in `known` is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f', did you mean "{near[0]}"?' if near else ""


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate a tool's `main` to print a `UserError` as one paragraph, with exit code 2, and ^C as one line.

    Detectron2 is not a requirement that pip installs: where it is missing, the error says how to get it.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(USER_ERROR)
        except ModuleNotFoundError as error:
            if error.name != "detectron2":
                raise
            print(f"error: {NO_DETECTRON2}", file=sys.stderr)
            sys.exit(USER_ERROR)
        except KeyboardInterrupt:
            if os.environ.get("LOCAL_RANK", "0") == "0":  # all processes of a group receive it
                print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)

    return wrapped
