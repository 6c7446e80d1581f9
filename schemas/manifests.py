"""Manifests: what says that a stage's folder is complete, and which parts it has."""

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.receipts import StoredFile, fingerprint
from schemas.state import Count, Sha256, StoredState


class ManifestPart(BaseModel):
    """One part as a manifest lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    part: str
    rows: Count
    files: tuple[StoredFile, ...]


class Manifest(StoredState):
    """What every manifest says.

    Attributes:
        made_from: all that determines the content.
        made_by: its fingerprint.
    """

    made_from: dict[str, Any]
    made_by: Sha256

    @model_validator(mode="after")
    def _is_its_own(self) -> Self:
        if fingerprint(self.made_from) != self.made_by:
            raise ValueError("made_by is not the fingerprint of made_from")
        return self


class TrainManifest(Manifest):
    """A run's manifest.

    Attributes:
        steps: that the training took.
        loss: the last mean loss; None where no step was taken.
        parts: the one part: the model, and its moving average where there is one.
    """

    FIX: ClassVar[str] = "delete it and rerun `deit-pipeline train` with that run's run file"
    stage: Literal["train"]
    steps: Count
    loss: float | None
    parts: tuple[ManifestPart, ...] = Field(min_length=1, max_length=1)

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The run's weights."""
        return self.parts[0].files

    def file(self, path: str) -> StoredFile | None:
        """One file of the run's weights."""
        return next((file for file in self.files if file.path == path), None)
