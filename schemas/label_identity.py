"""The identity of a label set: all that determines its decisions."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import UserError
from schemas.state import Sha256, explain

_FROZEN = ConfigDict(frozen=True, extra="forbid", strict=True)


class TopK(BaseModel):
    """A store of k classes a view, normalised at a temperature.

    Attributes:
        kind: "topk" keeps the largest logits in 16 bits, "compact" the same quantised.
        k: classes of a view.
        tau: the temperature.
    """

    model_config = _FROZEN
    kind: Literal["topk", "compact"]
    k: int
    tau: float


class Sampled(BaseModel):
    """A store of classes drawn from the teacher's distribution at a temperature.

    Attributes:
        samples: draws of a view.
        tau: the temperature.
    """

    model_config = _FROZEN
    kind: Literal["sampled"]
    samples: int
    tau: float


class LabelIdentity(BaseModel):
    """What a label set is made from.

    Attributes:
        shards: content of the split.
        recipe: of the views, the run file's `[views]`.
        teacher: what names the teacher; see `stages.models.teacher.Teacher.identity`.
        store: what is kept of a decision.
    """

    model_config = _FROZEN
    shards: Sha256
    recipe: dict[str, Any]
    teacher: dict[str, Any]
    store: Literal["hard", "full"] | TopK | Sampled

    @classmethod
    def of(cls, made_from: dict[str, Any], where: str) -> "LabelIdentity":
        """The identity in a label set's plan or manifest; `where` names that in the error.

        Raises:
            UserError: if a field is missing, unknown or wrong.
        """
        try:
            return cls.model_validate(made_from)
        except ValidationError as error:
            raise UserError(f"{where}: made_from is no label set's ({explain(error)})") from None

    @property
    def sides(self) -> list[int]:
        """Sides of the images that the teacher's networks take, in pixels."""
        side = self.teacher["side"]
        return side if isinstance(side, list) else [side]

    @property
    def kind(self) -> str:
        """How decisions are kept: "hard", "topk", "compact", "sampled" or "full"."""
        return self.store if isinstance(self.store, str) else self.store.kind

    def to_json(self) -> dict[str, Any]:
        """As plans and manifests have it."""
        return self.model_dump(mode="json")
