"""What was read of a sweep's records before, so that thousands of files need not be read again.

The cache only saves time. It may be deleted at any moment; it is not believed of a file that has
changed since, its content is checked as a record's is, and where it is damaged it is made anew.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from scalebench_lib.files import is_whole_notebook, write_atomically
from scalebench_lib.record import Record

FILE = Path(".cache", "records.npz")
NOTEBOOKS = Path(".cache", "notebooks.json")

WORTH_KEEPING = 200
"""So many files, newly read, take longer to read again than to keep what was read."""

_SHARED = ("config", "machine", "software")
"""What many records have in common is kept once."""

_NUMBERS = ("samples_ns", "started_ns", "probe_before_ns", "probe_after_ns", "warmup_ns")
"""What is long is kept as an array."""

_APART: Any = {**dict.fromkeys(_SHARED, True), "points": {"__all__": set(_NUMBERS)}}

Stamp = tuple[int, int, int]
Known = dict[str, tuple[Stamp, Record]]
"""Records by the names of their files, with what these looked like when they were read."""


def read(out: Path, load: Callable[[Path], Record | None]) -> list[Record]:
    """All records of the sweep in folder `out`; what is not kept, or has changed, by `load`."""
    with _no_garbage():
        stamps = {path: stamp(path) for path in (out / "records").glob("*.json")}
        kept = recall(out) if len(stamps) >= WORTH_KEEPING else {}
        known, fresh = Known(), 0
        for path, seen in stamps.items():
            if path.name in kept and kept[path.name][0] == seen:
                known[path.name] = kept[path.name]
            elif record := load(path):
                known[path.name], fresh = (seen, record), fresh + 1
        if fresh >= WORTH_KEEPING:
            keep(out, known)
    return [record for _, record in known.values()]


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Records make none: looking for it in thousands takes as long as reading them, each time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


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
            np.savez(draft, allow_pickle=False, **_packed(known))
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def _packed(known: Known) -> dict[str, Any]:
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
    kind: Any = Record.model_fields[what].annotation
    return [kind.model_validate_json(text) for text in texts]


def damaged_notebooks(out: Path) -> list[Path]:
    """The executed notebooks in folder `out` that are not as they were written.

    One that was whole before, and has not changed since, is not read again.
    """
    known = _known_whole(out)
    seen = {path: list(stamp(path)) for path in (out / "notebooks").glob("[!.]*.ipynb")}
    unknown = [path for path, now in seen.items() if known.get(path.name) != now]
    damaged = [path for path in unknown if not is_whole_notebook(path)]
    if len(unknown) - len(damaged) >= WORTH_KEEPING:
        whole = {path.name: now for path, now in seen.items() if path not in damaged}
        with suppress(OSError):
            (out / NOTEBOOKS).parent.mkdir(exist_ok=True)
            write_atomically(out / NOTEBOOKS, json.dumps(whole))
    return damaged


def _known_whole(out: Path) -> dict[str, Any]:
    try:
        kept = json.loads((out / NOTEBOOKS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
