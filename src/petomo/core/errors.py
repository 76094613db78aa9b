"""The one exception that is a message to the user rather than a fault of the program."""

LONGEST = 600


class UserError(Exception):
    """One clear sentence: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with code 2. What a message quotes from a file
    can be long, or meant to steer a terminal, so lines are cut and control characters shown as escapes.
    """

    def __str__(self) -> str:
        return "\n".join(_shown(line) for line in super().__str__().split("\n"))


class WrongNumbers(UserError):
    """A calculation came to nothing: settings have to change before it can be done."""


def _shown(line: str) -> str:
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
