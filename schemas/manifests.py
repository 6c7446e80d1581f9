"""Manifests: they record that a stage's folder is complete, its identity, and its parts."""

import json
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.parts import ManifestPart
from schemas.receipts import StoredFile, fingerprint
from schemas.state import Count, Sha256, StoredState

_FROZEN = ConfigDict(frozen=True, extra="forbid", strict=True)


class Manifest(StoredState):
    """The fields of every manifest.

    Attributes:
        VERB: the command that writes it, for messages.
        made_from: all that determines the content.
        made_by: its fingerprint.
    """

    VERB: ClassVar[str]
    made_from: dict[str, Any]
    made_by: Sha256

    @property
    def wanted(self) -> int:
        """What the plan of the complete folder wants: parts, or steps of a training."""
        raise NotImplementedError

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
        classes: the fingerprint of the names of its classes in their order; None = not stored (0.1.0).
        parts: the one part: the model, and its moving average where there is one.
    """

    VERB: ClassVar[str] = "`deit-pipeline train` with that run's run file"
    FIX: ClassVar[str] = f"delete it and rerun {VERB}"
    stage: Literal["train"]
    steps: Count
    loss: float | None
    classes: Sha256 | None = None
    parts: tuple[ManifestPart, ...] = Field(min_length=1, max_length=1)

    @property
    def wanted(self) -> int:
        """Steps of the training."""
        return self.steps

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The run's weights."""
        return self.parts[0].files

    def file(self, path: str) -> StoredFile | None:
        """One file of the run's weights."""
        return next((file for file in self.files if file.path == path), None)


class PartsFile(BaseModel):
    """A manifest's parts: their number, and the Parquet file that lists them."""

    model_config = _FROZEN
    count: Count
    file: StoredFile


class PartsManifest(Manifest):
    """The manifest of a stage whose folder is made part by part.

    Attributes:
        versions: of libraries; recorded and not compared.
        content: the fingerprint of the parts.
        parts: the file that lists them; in version 0.1.0 the parts themselves.
    """

    versions: dict[str, str]
    content: Sha256
    parts: PartsFile | tuple[ManifestPart, ...]

    @property
    def wanted(self) -> int:
        """Number of parts."""
        return self.parts.count if isinstance(self.parts, PartsFile) else len(self.parts)


class Adopted(BaseModel):
    """The tars of an adopted split: their folder, and their content, shard by shard."""

    model_config = _FROZEN
    root: str
    tars: tuple[StoredFile, ...]


class ShardManifest(PartsManifest):
    """A split's manifest.

    Attributes:
        classes: names of the classes by index.
        found: images and other files of the source.
        samples: images that were packed.
        skipped: images that were not, each with `name` and `reason`.
        other_files: files of the source that are no images.
        left_out: what else of the source was left out, by kind.
        adopted: the tars that the split uses in place; None = it has its own tars.
    """

    VERB: ClassVar[str] = "`deit-pipeline shard`"
    FIX: ClassVar[str] = f"delete it and rerun {VERB}"
    stage: Literal["shard"]
    classes: tuple[str, ...]
    found: Count
    samples: Count
    skipped: tuple[dict[str, str], ...]
    other_files: Count
    left_out: tuple[Any, ...] = ()
    adopted: Adopted | None = None

    @model_validator(mode="after")
    def _has_its_classes(self) -> Self:
        if list(self.classes) != list(self.made_from.get("classes", self.classes)):
            raise ValueError("classes are not those of made_from")
        return self


class LabelManifest(PartsManifest):
    """A label set's manifest.

    Attributes:
        views: labelled of each sample.
        agreement: share of unmixed centre crops on which the teacher names the true class.
        mixed_agreement: shares of mixed views by whose class the teacher names.
        margins: quantiles of the largest logit less the second.
        margin_counts: the histogram they are from.
        near_ties: share of decisions within rounding of a tie.
    """

    VERB: ClassVar[str] = "`deit-pipeline label-teacher`"
    FIX: ClassVar[str] = f"delete it and rerun {VERB}"
    stage: Literal["label-teacher"]
    views: Count
    agreement: float
    mixed_agreement: dict[str, float]
    margins: dict[str, float]
    margin_counts: tuple[Count, ...]
    near_ties: float


class PredictionsManifest(PartsManifest):
    """The manifest of a model's predictions over a set of images."""

    VERB: ClassVar[str] = "`deit-pipeline evaluate`"
    FIX: ClassVar[str] = f"delete it and rerun {VERB}"
    stage: Literal["evaluate"]


MANIFESTS: dict[str, type[Manifest]] = {
    "shard": ShardManifest, "label-teacher": LabelManifest, "train": TrainManifest, "evaluate": PredictionsManifest,
}  # fmt: skip
"""Types of manifests by stage."""


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Parse the manifest of any stage; `where` names the file in the error.

    Raises:
        UserError: if it is damaged.
    """
    try:
        kind = MANIFESTS.get(json.loads(data)["stage"])
    except (ValueError, TypeError, KeyError):
        kind = None
    return (kind or _NoStage).from_json(data, where)


class _NoStage(Manifest):
    """What no stage writes; whatever is read as it is refused with the field that is wrong."""

    stage: Literal["shard, label-teacher, train or evaluate"]
