"""The one exception for mistakes a user can mend; every command prints it as a single line."""


class InputError(ValueError):
    """A file, folder or flag from outside is not what it has to be.

    The message is one line that says what was wrong, what was found, what was expected and how to mend it.
    """
