"""The scale of a picture's y axis, and an axis that several pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Span:
    """A y axis, logarithmic or from 0, with room for values from `low` to `high`."""

    log: bool
    low: float
    high: float

    @classmethod
    def around(cls, spans: Sequence[Span]) -> Span:
        """The axis on which all of `spans` find room."""
        return cls(
            any(span.log for span in spans),
            min(span.low for span in spans),
            max(span.high for span in spans),
        )


Scale = Literal["auto", "linear", "log"] | Span
