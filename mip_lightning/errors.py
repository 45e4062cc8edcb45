"""The one error for a value that a user gave and that cannot be used."""


class UsageError(ValueError):
    """A value that the user gave cannot be used.

    The message is one line that names the argument, the value and the way out. The command
    line prints that line alone; anything else that is raised is a fault of the program and
    keeps its traceback.
    """


class NonFiniteError(UsageError):
    """The loss, a gradient or a weight is not a finite number: training cannot go on as it is."""
