"""The one exception that is a message to the user rather than a fault of the program."""


class UserError(Exception):
    """One clear sentence: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with code 2.
    """
