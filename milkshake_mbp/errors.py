"""The one exception that is shown to a user as a single line instead of a traceback."""


class UserError(ValueError):
    """Something the user can put right: its message says what is wrong and what to do, in one line."""


class UnreadableError(UserError):
    """A forward pass cannot be run on the samples at hand; what needs none can go on."""
