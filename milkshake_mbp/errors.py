"""The exceptions that are shown to a user as a single line instead of a traceback."""


class UserError(ValueError):
    """An error that the user can correct: its message says in one line what is wrong and what to do."""


class UnreadableError(UserError):
    """A forward pass cannot be run on these samples; operations that need none are still possible."""
