"""The page: sections as one HTML file that loads nothing, opens from a disk and follows the reader's theme.

The template escapes every text. A content security policy in the page forbids scripts and every request, so a name
that would slip through could still do nothing.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from schemas.secrets import hide_secrets
from schemas.visible import visible
from stages.report.blocks import Block, Section


def render(title: str, about: str, sections: Sequence[Section]) -> str:
    """The page's text.

    Args:
        title: of the page.
        about: a sentence below it.
        sections: in their order.
    """
    return _environment().get_template("page.html.j2").render(title=title, about=about, sections=sections)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stages.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["trusted"] = Markup
    environment.filters["groupby_runs"] = _runs
    return environment


def _runs(blocks: Sequence[Block]) -> list[tuple[str, list[Block]]]:
    """Neighbouring blocks of one kind, under its name."""
    return [(kind, list(run)) for kind, run in groupby(blocks, key=lambda block: block.KIND)]


def _shown(value: Any) -> Any:
    """A text without secrets and without characters that move others; markup as it is."""
    return visible(hide_secrets(value), keep="\n\t") if type(value) is str else value
