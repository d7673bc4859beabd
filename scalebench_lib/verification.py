"""What verification found: a part of the record."""

from __future__ import annotations

from typing import Literal

from scalebench_lib.words import Words


class Verification(Words):
    """How near the optimized outputs were to `reference`: float64, or eager float32.

    `sqnr_db` is signal over error of the worst of the `items` compared, in dB, at unmasked
    positions; `eager_sqnr_db` that of eager float32. `max_abs_error` is against eager. Records
    before 0.2 have a `tolerance` on that instead.
    """

    max_abs_error: float
    items: int
    sqnr_db: float | None = None
    eager_sqnr_db: float | None = None
    required_db: float | None = None
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    reference: Literal["fp64", "eager"] = "eager"
    batch_size: int | None = None
    note: str | None = None
    tolerance: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the outputs are near enough."""
        if self.sqnr_db is None or self.required_db is None:
            return True
        return self.sqnr_db >= self.required_db

    @property
    def sliced(self) -> bool:
        """Whether only some items of the batch were compared."""
        return self.batch_size is not None and self.items < self.batch_size

    def __str__(self) -> str:
        largest = f"outputs differ from eager's by at most {self.max_abs_error:.2g}"
        if self.sqnr_db is None:
            return largest
        of = f" of {self.batch_size}" if self.sliced else ""
        against = "eager fp32" if self.eager_sqnr_db is None else "fp64"
        eager = "" if self.eager_sqnr_db is None else f", where eager has {self.eager_sqnr_db:.0f}"
        note = f" ({self.note})" if self.note else ""
        return (
            f"SQNR {self.sqnr_db:.0f} dB against {against}{eager}, at least {self.required_db:.0f} "
            f"asked of {self.precision}, worst of {self.items}{of} items{note}; {largest}"
        )
