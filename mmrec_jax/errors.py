"""Errors that a person is meant to read, and the hint that goes with a misspelt name."""

import difflib


class UserError(Exception):
    """Something the user can put right: one line that says what is wrong and what to do.

    The commands print it without a traceback and exit with code 1.
    """


def nearest(word: str, choices: list[str]) -> str:
    """' (did you mean X?)' with the choice most like the word, or '' when none is."""
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
