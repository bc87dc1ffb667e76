"""Errors written for the user to read, and suggestions for misspelled names."""

import difflib


class UserError(Exception):
    """An error that the user can fix: one line that says what is wrong and what to do about it.

    The commands print it without a traceback and exit with code 1.
    """


def nearest(word: str, choices: list[str]) -> str:
    """Returns ' (did you mean X?)' with the choice most similar to the word, or '' if none is."""
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def printable(text: str, keep: str = "") -> str:
    """A text that changes nothing on a terminal but what it shows: other characters are escaped.

    Those in `keep`, such as line ends, stay.
    """
    return "".join(x if x.isprintable() or x in keep else ascii(x)[1:-1] for x in text)
