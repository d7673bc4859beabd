"""Models exported for engines, kept on disk: an export takes longer than measuring what it is for.

Each lies in a folder of its own, named by a hash of all that it was made from, weights included.
The folder appears whole or not at all; its manifest tells sizes and checksums, and an entry that
does not match is made again. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import filelock

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import Model
from scalebench_lib.measure.optimizations.base import Target

MANIFEST = "manifest.json"

Metadata = dict[str, str]
"""What was found out while exporting, kept in the manifest."""


def cache_folder() -> Path:
    """``$SCALEBENCH_CACHE``, else ``scalebench`` in the user's cache; for the owner only."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("SCALEBENCH_CACHE") or Path(home) / "scalebench")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise MeasurementError(
            f"cannot keep exports in {folder} ({error.strerror}): set SCALEBENCH_CACHE"
        ) from None
    return folder


def share_inductor_cache() -> None:
    """Have inductor keep what it compiles beside the exports, for the trials to come."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))


def cache_key(subject: Target, kind: str, packages: Iterable[str]) -> str:
    """A name for the export of kind `kind` that `packages` make: readable, with a hash."""
    versions = {name: version(name) for name in ("torch", "transformers", *packages)}
    shapes = [(str(part.dtype), *part.shape[1:]) for part in subject.inputs]
    made_of = json.dumps([kind, versions, shapes, _fingerprint(subject.model)])
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:24]
    return f"{subject.config.model.replace('/', '_')}-{kind}-{digest}"


def _fingerprint(model: Model) -> str:
    """A hash of the module: its code, its structure and every weight."""
    module = model.module
    found = hashlib.sha256(Path(inspect.getfile(type(module))).read_bytes())
    found.update(str(module).encode())
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().contiguous().numpy().reshape(-1).view("uint8").data)
    return found.hexdigest()


def export(key: str, make: Callable[[Path], Metadata]) -> tuple[Path, Metadata]:
    """The folder of export `key` and its facts; `make` fills it where there is none yet."""
    folder = cache_folder() / key
    with filelock.FileLock(f"{folder}.lock"):
        facts = _facts(folder)
        if facts is None:
            shutil.rmtree(folder, ignore_errors=True)
            facts = _made(folder, make)
    return folder, facts


def _made(folder: Path, make: Callable[[Path], Metadata]) -> Metadata:
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        facts = make(draft)
        files = {path.name: _checksum(path) for path in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps({"facts": facts, "files": files}))
        draft.rename(folder)
    except MeasurementError:
        raise
    except Exception as error:  # exporters raise whatever their parts raise
        first_line = next(iter(str(error).splitlines()), "")
        raise MeasurementError(
            f"this model cannot be exported: {type(error).__name__}: {first_line}"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return facts


def _facts(folder: Path) -> Metadata | None:
    """The facts of a whole entry; None where there is none, or where it is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = all(_checksum(folder / name) == sum_ for name, sum_ in manifest["files"].items())
        return dict(manifest["facts"]) if whole and manifest["files"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
