"""Contrast of colours, as WCAG 2.2 defines it, and the ink that reads best on a ground."""

from PIL import ImageColor


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours such as "#1f2328", from 1 to 21 (WCAG 2.2, relative luminance)."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def ink_on(ground: str, *inks: str) -> str:
    """The one of several inks that has the highest contrast on a ground."""
    return max(inks, key=lambda ink: contrast(ink, ground))


def linear(colour: str) -> tuple[float, ...]:
    """Linear red, green and blue of an sRGB colour, from 0 to 1."""
    shares = [value / 255 for value in ImageColor.getrgb(colour)[:3]]
    return tuple(one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares)


def _luminance(colour: str) -> float:
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
