"""The exceptions that reach a user, each one line: the thing, the cause, the fix.

The command line turns them into exit codes; anything else that escapes is a bug of ours and keeps
its traceback.
"""

from collections.abc import Sequence

from schemas.secrets import hide_secrets
from schemas.visible import visible


class UserError(Exception):
    """Something the user can fix; the message is the single line they read, without secrets of URIs or controls."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(visible(hide_secrets(message)))


class IncompleteError(UserError):
    """Stopped, or some parts failed: the same command resumes."""

    exit_code = 3


class MismatchError(UserError):
    """Two things that do not belong together, such as labels and a recipe that did not make them."""

    exit_code = 4


class BadImages(UserError):
    """Images that cannot be read, each with its name and reason."""

    def __init__(self, images: Sequence[dict[str, str]]) -> None:
        named = "; ".join(f"{one['name']} {one['reason']}" for one in images)
        hint = 'fix or remove them, or set shards.on_bad_image = "skip"'
        super().__init__(f"unreadable images: {named} ({hint})")
        self.images = tuple(images)

    def __reduce__(self) -> tuple[type["BadImages"], tuple[tuple[dict[str, str], ...]]]:
        return BadImages, (self.images,)


def last_line(error: BaseException) -> str:
    """The last line of an error, without secrets; its kind, if it has no message."""
    return hide_secrets((str(error).strip().splitlines() or [type(error).__name__])[-1])


def merge_errors(errors: Sequence[UserError]) -> UserError:
    """The one error that stands for several: the first, or, if it names bad images, those of all."""
    if not isinstance(errors[0], BadImages):
        return errors[0]
    images = [image for error in errors if isinstance(error, BadImages) for image in error.images]
    return BadImages(sorted(images, key=lambda image: image["name"]))
