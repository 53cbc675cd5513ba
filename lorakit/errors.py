"""The error that users can fix: its message says what was found, where, what is allowed and what to do."""


class UserError(ValueError):
    """Base of every error that is meant for the user; a terminal shows its message without a traceback."""
