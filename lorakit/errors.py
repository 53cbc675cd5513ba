"""The error that people can mend: its message says what was found, what is allowed and what to do."""


class UserError(ValueError):
    """Base of every error that is meant for the user; a terminal shows its message without a traceback."""
