"""Text of foreign origin, such as file names, as it is shown: nothing in it moves a cursor or sets a colour."""

import unicodedata

_TURNED = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that show the text behind them in another order than it is written in."""


def visible(text: str, keep: str = "") -> str:
    r"""The text with control characters, parts of no character, and what reverses it, as `\x1b` and so on.

    Args:
        text: to show.
        keep: control characters that stay, such as a line's end.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in keep or not _moves(one) else ascii(one)[1:-1] for one in text)


def _moves(one: str) -> bool:
    return one in _TURNED or unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")
