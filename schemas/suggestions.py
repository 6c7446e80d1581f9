"""What was probably meant by a misspelt name."""

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """The end of a sentence that names the nearest of some names; "" where none is near."""
    nearest = difflib.get_close_matches(given, list(names), n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
