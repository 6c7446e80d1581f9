"""The exceptions that reach a user, each one line: the thing, the cause, the mend.

The command line turns them into exit codes; anything else that escapes is a bug of ours and keeps
its traceback.
"""


class PipelineError(Exception):
    """Something the user can mend; the message is the single line they read."""

    exit_code = 1


class Unfinished(PipelineError):
    """Stopped, or some parts failed: the same command resumes."""

    exit_code = 3


class Mismatch(PipelineError):
    """Two things that do not belong together, such as labels and a recipe that did not make them."""

    exit_code = 4
