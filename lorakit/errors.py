"""The error that users can fix: its message says what was found, where, what is allowed and what to do."""

from lorakit.secrets import hidden


class UserError(ValueError):
    """Base of every error that is meant for the user; a terminal shows its message without a traceback.

    Its text never shows the password or token of an address in it.
    """

    def __str__(self) -> str:
        return hidden(super().__str__())
