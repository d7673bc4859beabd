"""What was read of a sweep's records before, so that thousands of files need not be read again.

The cache only saves time. It may be deleted at any moment; it is not believed of a file that has
changed since, its content is checked as a record's is, and where it is damaged it is made anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from scalebench_lib.record import Record

FILE = Path(".cache", "records.npz")

_SHARED = ("config", "machine", "software")
"""What many records have in common is kept once."""

_NUMBERS = ("samples_ns", "started_ns", "probe_before_ns", "probe_after_ns", "warmup_ns")
"""What is long is kept as an array."""

_APART: Any = {**dict.fromkeys(_SHARED, True), "points": {"__all__": set(_NUMBERS)}}

Stamp = tuple[int, int, int]
Known = dict[str, tuple[Stamp, Record]]
"""Records by the names of their files, with what these looked like when they were read."""


def stamp(path: Path) -> Stamp:
    """What changes when the file does."""
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def recall(out: Path) -> Known:
    """What was kept of the sweep in folder `out`: nothing where that is missing or damaged."""
    try:
        with np.load(out / FILE, allow_pickle=False) as kept:
            kept = {name: kept[name] for name in kept.files}
        return _unpacked(from_json(kept["heads"].tobytes()), kept["numbers"], kept["sizes"])
    except (OSError, EOFError, BadZipFile, ValidationError, ValueError, LookupError, TypeError):
        return {}


def keep(out: Path, known: Known) -> None:
    """Keep `known` for the next reading of folder `out`, where that can be written."""
    path = out / FILE
    draft = path.with_name(f".{os.getpid()}.npz")
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        try:
            np.savez(draft, **_packed(known))
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def _packed(known: Known) -> dict[str, np.ndarray]:
    shared: dict[str, dict[Any, int]] = {name: {} for name in _SHARED}
    heads, numbers = [], list[tuple[int, ...]]()
    for name, (seen, record) in known.items():
        head = record.model_dump(mode="json", exclude=_APART)
        for what, places in shared.items():
            text = getattr(record, what).model_dump_json()
            head[what] = places.setdefault(text, len(places))
        heads.append((name, seen, head))
        numbers += [getattr(point, what) for point in record.points for what in _NUMBERS]
    texts = {what: list(places) for what, places in shared.items()}
    return {
        "heads": np.frombuffer(json.dumps({**texts, "records": heads}).encode(), np.uint8),
        "numbers": np.array([one for each in numbers for one in each], dtype=np.int64),
        "sizes": np.array([len(each) for each in numbers], dtype=np.int64),
    }


def _unpacked(heads: Mapping[str, Any], numbers: np.ndarray, sizes: np.ndarray) -> Known:
    shared = {what: _parsed(what, heads[what]) for what in _SHARED}
    flat, bounds = numbers.tolist(), pairwise(accumulate(sizes.tolist(), initial=0))
    for _, _, head in heads["records"]:
        for what in _SHARED:
            head[what] = shared[what][head[what]]
        for point in head["points"]:
            for what, (start, end) in zip(_NUMBERS, bounds, strict=False):
                point[what] = flat[start:end]
    return TypeAdapter(Known).validate_python(
        {name: (seen, head) for name, seen, head in heads["records"]}
    )


def _parsed(what: str, texts: Iterable[str]) -> list[Any]:
    kind = TypeAdapter[Any](Record.model_fields[what].annotation)
    return [kind.validate_json(text) for text in texts]
