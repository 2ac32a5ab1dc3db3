"""The exceptions that reach the user without a traceback."""


class UserError(Exception):
    """Bad input: one line that names the file, the value and the next step.

    The command line prints it on stderr and exits with `status`; in Python it is raised like any other exception.
    """

    status = 2


class JobError(UserError):
    """The input was right and the job failed all the same: a loss that is NaN, a disk that is full."""

    status = 1
