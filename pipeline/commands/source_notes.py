"""The form of a source, reported before anything is written, and everything that is left out."""

from pipeline.execution.progress import note
from stages.data.image_set import ImageSet, SourceImageSet
from stages.sources.listing import Listing

_NAMED = 5


def note_source(context: str, listing: Listing, given: str) -> None:
    """Say what a source is: its form, where its classes come from, what is left out, what may be other than it seems.

    Args:
        context: the run file's key and value.
        listing: of the source.
        given: where given class names come from.
    """
    note(f"{context}: {listing.reading(given)}")
    for warning in listing.warnings:
        note(f"{context}: warning: {warning}")
    if listing.beside:
        first = ", ".join(listing.beside[:_NAMED]) + (", …" if len(listing.beside) > _NAMED else "")
        note(f"{context}: {len(listing.beside)} folders or files beside that are left out: {first}")
    if listing.left_out:
        reasons = "; ".join(f"{one['count']} {one['reason']}, such as {one['first']}" for one in listing.left_out)
        note(f"{context}: {listing.other_files} files are left out: {reasons}")
    if listing.refused:
        count, one = len(listing.refused), listing.refused[0]
        note(f"{context}: {count} that look like images are never read, such as {one['name']}: {one['reason']}")


def noted(image_set: ImageSet, source: str) -> ImageSet:
    """The images that models are measured on; reports the form of `evaluate.source`, if that is set."""
    if isinstance(image_set, SourceImageSet):
        note_source(f"evaluate.source = {source}", image_set.listing, "the train split or source.classes")
    return image_set
