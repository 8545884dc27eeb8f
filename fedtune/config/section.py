"""What every section of the settings is: frozen, strict, without unknown keys."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False
    )

    def changed(self, field: str) -> bool:
        """Whether `field` is set to something other than its default."""
        default = type(self).model_fields[field].get_default(call_default_factory=True)
        return bool(getattr(self, field) != default)

    def refuse_idle(self, choice: str, fields_of: Mapping[str, Sequence[str]]) -> None:
        """Raise ValueError on a field that is set and that the value of `choice` does not use.

        `fields_of` names the values of `choice` that use each field.
        """
        chosen = getattr(self, choice)
        for field, users in fields_of.items():
            if self.changed(field) and chosen not in users:
                raise ValueError(
                    f"`{field}` needs `{choice}: {' or '.join(users)}`, not `{choice}: {chosen}`; "
                    "leave it at its default"
                )
