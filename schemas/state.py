"""Stored state: JSON files of fixed fields, each proven by a sum of its own and parsed by its type alone.

A file holds its fields and `sha256`, the fingerprint of all of them, so a changed, cut or swapped value is noticed
whatever the fields say. Files of version 0.1.0 have no such sum; their fields are checked against each other.
"""

import json
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import UserError
from schemas.receipts import canonical_json, fingerprint, truncate_json

SUM = "sha256"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class StoredState(BaseModel):
    """The fields of one stored JSON file.

    Attributes:
        FIX: what to do about a damaged file, for messages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    FIX: ClassVar[str] = "delete it and rerun its stage"

    def fields(self) -> dict[str, Any]:
        """The fields that were given, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)

    def to_json(self) -> bytes:
        """The file's bytes: the fields and their sum, the same on every machine."""
        fields = self.fields()
        return canonical_json(fields | {SUM: fingerprint(fields)})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Parse what `to_json` wrote; `where` names the file in the error.

        Raises:
            UserError: naming file, field and fix, if a field is missing, unknown or wrong, or the sum is.
        """
        try:
            fields = _proven(data)
            return cls.model_validate_json(canonical_json(fields))
        except ValidationError as error:
            cause = explain(error)
        except ValueError as error:
            cause = str(error)
        raise UserError(f"{where}: is damaged ({cause}); {cls.FIX}")


def _proven(data: bytes) -> dict[str, Any]:
    """The fields of a file without their sum; raises ValueError where that is wrong."""
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    if SUM in fields:
        if canonical_json(fields) != data:
            raise ValueError("not the bytes that were written")
        if fields.pop(SUM) != fingerprint(fields):
            raise ValueError(f"its fields do not have the {SUM} that it names")
    return fields


def explain(error: ValidationError) -> str:
    """The first field that is wrong, and why."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"no field {field}"
    if first["type"] == "extra_forbidden":
        return f"unknown field {field}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return f"{field} = {truncate_json(first['input'])}: {message}" if field else message
