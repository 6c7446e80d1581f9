"""Forms in which results are written, checked before anything slow is loaded."""

from schemas.errors import UserError
from schemas.paths import local_path
from schemas.suggestions import did_you_mean

EXPORT_FORMATS = ("safetensors", "huggingface", "onnx", "torch-export")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of pictures of pixels that every viewer opens."""


def require_export_format(name: str) -> None:
    """Raise UserError if nothing is exported in that format."""
    if name not in EXPORT_FORMATS:
        allowed = ", ".join(EXPORT_FORMATS)
        raise UserError(f"--format {name}: unknown; allowed: {allowed}{did_you_mean(name, EXPORT_FORMATS)}")


def require_picture(option: str, path: str) -> None:
    """Raise UserError if a file is no path of this machine, or its suffix is none of `PICTURES`."""
    if local_path(path, option).suffix.lower() not in PICTURES:
        raise UserError(f"{option} {path}: cannot be written in that form; name a {', '.join(PICTURES)}")
