"""The one error that a user can mend, and how the tools show it."""

import functools
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

USER_ERROR = 2  # exit code
INTERRUPTED = 130  # as shells have it for SIGINT


class UserError(ValueError):
    """Bad input: the message names the file or key, says what is wrong and what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause `, did you mean "x"?` for a misspelt `word`, empty where nothing in `known` is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f', did you mean "{near[0]}"?' if near else ""


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate a tool's `main`: a `UserError` is printed as one paragraph and the exit code is 2; ^C is one line."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(USER_ERROR)
        except KeyboardInterrupt:
            if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun's processes all get it
                print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)

    return wrapped
