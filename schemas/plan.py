"""A stage's plan: what its folder is made from. It is written before the first part."""

from typing import Any, ClassVar

from schemas.receipts import fingerprint
from schemas.state import Count, StoredState


class Plan(StoredState):
    """What a stage's folder is made from.

    Attributes:
        made_from: all that determines the content.
        versions: of libraries; recorded and not compared.
        wanted: parts, or steps of a training, that there are to be; it may grow and binds nobody.
    """

    FIX: ClassVar[str] = "delete it and rerun its stage, which writes it again"
    made_from: dict[str, Any]
    versions: dict[str, str]
    wanted: Count = 0

    @property
    def made_by(self) -> str:
        """The fingerprint that receipts and manifests carry."""
        return fingerprint(self.made_from)
