"""Keep models that were exported for engines: an export may take longer than its measurement.

The folder of an export is named by a hash of all that it was made from, weights included. It is
renamed into place when it is complete; an export that does not match the checksums in its manifest
is made again. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import filelock
import platformdirs

from scalebench_lib.errors import MeasurementError, reason_of
from scalebench_lib.measure.models import digest
from scalebench_lib.measure.optimizations.base import Target
from scalebench_lib.record import CacheState, package_version

MANIFEST = "manifest.json"

_DISK = re.compile(
    "No space left on device|Disk quota exceeded|Read-only file system|Permission denied"
)
_FULL_BYTES = 16 << 20

Metadata = dict[str, str]
"""Facts about an export, kept in the manifest."""

LOOKUPS = Counter[bool]()
"""Hits (True) and misses (False) of the cache in this process."""


def cache_state(before: Counter[bool]) -> CacheState | None:
    """Return the state of the cache by the lookups since `before`; None without any."""
    since = LOOKUPS - before
    states: dict[int, CacheState] = {1: "empty", 2: "full", 3: "partly full"}
    return states.get(bool(since[False]) + 2 * bool(since[True]))


def cache_folder() -> Path:
    """Return ``$SCALEBENCH_CACHE``, else ``scalebench`` in the user's cache; for the owner only.

    Raises `MeasurementError` if it cannot be made.
    """
    folder = Path(os.environ.get("SCALEBENCH_CACHE") or platformdirs.user_cache_dir("scalebench"))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise _unusable(folder, error.strerror) from None
    return folder


def raise_if_disk_error(error: Exception, folder: Path) -> None:
    """Raise `MeasurementError` where the disk of `folder`, not the model, caused `error`."""
    if found := _DISK.search(f"{error} {error.__cause__} {error.__context__}"):
        raise _unusable(folder, found[0]) from None
    if shutil.disk_usage(folder).free < _FULL_BYTES:  # some only say that they cannot write
        raise _unusable(folder, "No space left on device") from None


def _unusable(folder: Path, why: str | None) -> MeasurementError:
    return MeasurementError(f"cannot keep exports in {folder} ({why}): set SCALEBENCH_CACHE")


def cache_key(target: Target, kind: str, *packages: str) -> str:
    """Return a readable name, with a hash, for the export of `kind` that `packages` make."""
    versions = {name: package_version(name) for name in ("torch", "transformers", *packages)}
    shapes = [(str(part.dtype), *part.shape[1:]) for part in target.inputs]
    source, phase = inspect.getsource(type(target.model.module)), target.config.phase
    made_of = [kind, versions, shapes, digest(target.model), source, phase]
    hashed = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]
    return f"{target.config.model.replace('/', '_')}-{kind}-{hashed}"


def export(key: str, make: Callable[[Path], Metadata]) -> tuple[Path, Metadata]:
    """Return the folder of export `key` and its metadata; `make` fills it if there is none yet.

    Raises `MeasurementError`, in one line, if `make` raises anything.
    """
    folder = cache_folder() / key
    with filelock.FileLock(f"{folder}.lock"):
        metadata = _load(folder)
        LOOKUPS[metadata is not None] += 1
        if metadata is None:
            shutil.rmtree(folder, ignore_errors=True)
            metadata = _make(folder, make)
    return folder, metadata


def _make(folder: Path, make: Callable[[Path], Metadata]) -> Metadata:
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        metadata = make(draft)
        files = {path.name: _checksum(path) for path in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps({"facts": metadata, "files": files}))
        draft.rename(folder)
    except MeasurementError:
        raise
    except Exception as error:  # exporters raise whatever their parts raise
        raise_if_disk_error(error, folder.parent)
        raise MeasurementError(
            f"this model cannot be exported: {type(error).__name__}: {reason_of(error)}"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return metadata


def _load(folder: Path) -> Metadata | None:
    """Return the metadata of an export; None if it is missing or damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = all(_checksum(folder / name) == sum_ for name, sum_ in manifest["files"].items())
        return dict(manifest["facts"]) if whole and manifest["files"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
