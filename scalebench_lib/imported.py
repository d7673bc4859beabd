"""A sweep that somebody else measured and published: rows of means, without samples.

It lies in a folder of its own, as one file that is written once, like a record. No folder holds
both records and an import.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scalebench_lib.config import Config
from scalebench_lib.errors import ScalebenchError, one_line
from scalebench_lib.record import write_atomically

FILE = "imported.json"

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Part(BaseModel):
    """A piece of an import: refuses unknown keys, never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PublishedPoint(Part):
    """A published mean, its words as published; `rows` are the rows of the file behind it.

    `seq_len` is 0 where the file does not tell it.
    """

    model: str
    optimization: str
    smt: bool
    placement: str
    allocator: str
    seq_len: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    cores: Annotated[float, Field(gt=0)]
    pinned: bool
    latency_ms_mean: Milliseconds
    latency_ms_min: Milliseconds | None
    latency_ms_max: Milliseconds | None
    rows: Annotated[int, Field(ge=1)]

    @property
    def config_id(self) -> str:
        """As of a config of ours, though the words may be unknown to us."""
        words = self.model_dump(include=set(Config.model_fields))
        return Config.model_construct(**words).id


class Imported(Part):
    """What a published file holds: its points, where they come from, and what to know of them.

    `machine` is what the importer called it, if anything. Each of `notes` is a sentence.
    """

    file: str
    sha256: str
    imported: datetime
    machine: str | None
    notes: tuple[str, ...]
    points: Annotated[tuple[PublishedPoint, ...], Field(min_length=1)]

    @property
    def machine_name(self) -> str:
        """For the results table: an unknown machine goes by the file's name."""
        return self.machine or Path(self.file).stem

    @property
    def machine_title(self) -> str:
        """For titles and captions."""
        return self.machine or "an unknown machine"

    @property
    def source(self) -> str:
        """Where the numbers come from, for captions."""
        return f"Imported from {self.file}: published means, no intervals · {self.machine_title}"

    def save(self, out: Path) -> None:
        """Write the import into folder `out`, whole or not at all."""
        write_atomically(out / FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, out: Path) -> Self | None:
        """The import in folder `out`, or None; `ScalebenchError` where it is damaged."""
        path = out / FILE
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ScalebenchError(f"{path} is damaged: {one_line(error)}") from None
