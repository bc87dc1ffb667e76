"""The one exception that a person is meant to read."""


class UserError(Exception):
    """Something the user can put right: one line that says what is wrong and what to do.

    The commands print it without a traceback and exit with code 1.
    """
