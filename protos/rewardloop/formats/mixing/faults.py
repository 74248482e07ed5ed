"""Tells all faults of an entry at once: those of its fields, and those between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


class TellsAllFaults(BaseModel):
    """A model with rules that concern several fields. They are looked at even if a field breaks a rule of its own.

    A validator of pydantic after the fields would not run then, and the first that raises hides the next.
    """

    @classmethod
    def faults(cls, values: Mapping[str, Any]) -> Iterator[str]:
        """Yield each rule between fields that ``values`` break, which are as the file has them, of any type."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _tell_all(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        told = list(cls.faults(value)) if isinstance(value, Mapping) else []
        between = [
            InitErrorDetails(type=PydanticCustomError("fault", "{text}", {"text": text}), loc=(), input=value)
            for text in told
        ]
        try:
            found = handler(value)
        except ValidationError as error:
            if not between:
                raise
            fields = [_as_details(each) for each in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, [*fields, *between]) from error
        if between:
            raise ValidationError.from_exception_data(cls.__name__, between)
        return found


def _as_details(error: Any) -> InitErrorDetails:
    """Return an error as it is raised again. Its text is kept as it is."""
    kind = PydanticCustomError(error["type"], "{text}", {"text": error["msg"]})
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"])
