"""The one exception that reaches the user without a traceback."""


class UserError(Exception):
    """Bad input: one line that names the file, the value and the next step.

    The command line prints it on stderr and exits with status 2; in Python it is raised like any other exception.
    """
