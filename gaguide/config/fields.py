"""Types of settings, and how their values may be written on the command line."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gaguide.files import expand_home
from gaguide.numbers import whole_number

PositiveInt = Annotated[int, Field(gt=0), BeforeValidator(whole_number)]
NonNegativeInt = Annotated[int, Field(ge=0), BeforeValidator(whole_number)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFraction = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A section of settings; each field has a sentence under it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


def indices(value: Any) -> Any:
    """`0,5` and `3` on the command line mean a list; `all` and `last-half` stay words."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", value):
        return tuple(int(part) for part in value.split(","))
    return value


def words(value: Any) -> Any:
    """One word means a list of one."""
    return (value,) if isinstance(value, str) else value


def at_home(value: Any) -> Any:
    """`~/x` as the home folder's, as in a shell; any other value unchanged."""
    return str(expand_home(value)) if isinstance(value, str) and value.startswith("~") else value


def words_at_home(value: Any) -> Any:
    """`words`, each `at_home`."""
    found = words(value)
    return tuple(map(at_home, found)) if isinstance(found, (list, tuple)) else found


OnOverflow = Literal["cut", "drop-demonstrations", "fail"]
"""Ways of handling an example that is longer than the model's positions: cut on the left, as
lm-evaluation-harness does; leave out whole demonstrations, the first ones first, and cut those still too
long; refuse the evaluation."""
PathText = Annotated[str, BeforeValidator(at_home)]
"""A path or another name; a leading `~` is expanded."""
Layers = Annotated[
    Literal["all", "last-half"] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)],
    BeforeValidator(indices),
]
