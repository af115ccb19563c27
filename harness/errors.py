"""What a person can put right is told to them in one sentence, without a traceback."""


class UserError(Exception):
    """A bad input: what is wrong, where, and what to do, in one sentence; `exit_code` is the command's."""

    exit_code = 2


class TooManyFailures(UserError):
    """Everything was written, but too many samples failed to call the run a success."""

    exit_code = 3


class Crashed(UserError):
    """Everything else was written, but a part ended by a mistake in the code; its traceback was printed."""

    exit_code = 1
