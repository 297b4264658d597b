"""What a setting is: a field with title, meaning, unit and bounds, and whether it may change a result; what a slot is.

No torch.
"""
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Model(BaseModel):
    """Frozen, closed, finite."""
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def setting(default: Any, title: str, description: str, *, effort: Literal["batch", "machine"] | None = None,
            **bounds) -> Any:
    """A field with its default (`...`: required), title, meaning (unit included) and bounds.

    `effort` marks what may not change a result beyond rounding, and is outside the fingerprint: "batch" is how much is
    held at once, and is halved when memory was short; "machine" is anything else.
    """
    extra = {"effort": effort} if effort else None
    return Field(default, title=title, description=description, json_schema_extra=extra, **bounds)


def effort_of(model: type[BaseModel], *kinds: str) -> set[str]:
    """The fields of a model that are marked as effort, of some kinds or of any."""
    marks = {name: (field.json_schema_extra or {}).get("effort") for name, field in model.model_fields.items()}
    return {name for name, mark in marks.items() if mark and (not kinds or mark in kinds)}


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=80)]


class Slot(Model):
    """A named choice with parameters; in YAML `{name: jsd, beta: 0.5}` or just `jsd`."""
    name: str = setting(..., "Name", "Which entry of the slot's table.")
    params: dict[str, Any] = setting({}, "Parameters", "Keyword arguments of that entry; see its docstring.")

    @model_validator(mode="before")
    @classmethod
    def fold(cls, value: Any) -> Any:
        """`jsd` and `{name: jsd, beta: 0.5}` become `{name: jsd, params: {beta: 0.5}}`; fields of the model stay."""
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "name" in value and not set(value) <= set(cls.model_fields):
            kept = {k: v for k, v in value.items() if k in cls.model_fields}
            loose = {k: v for k, v in value.items() if k not in cls.model_fields}
            return {**kept, "params": {**(value.get("params") or {}), **loose}}
        return value
