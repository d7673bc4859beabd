"""Where a model comes from: a folder, the hub's cache, or a function of one's own."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.util import find_spec
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

_OWN = re.compile(r"(.+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")


def is_own(model: str) -> bool:
    """Return whether `model` is ``file.py:function`` or ``package.module:function``."""
    return _OWN.fullmatch(model) is not None


def own_files(model: str) -> list[Path]:
    """Return a function's file and what that imports from beside it, or its package's files."""
    source = Path(model.rpartition(":")[0])
    if source.suffix == ".py":
        finder = ModuleFinder([str(source.parent)])
        with suppress(SyntaxError, ValueError, OSError):  # whoever imports it says where
            finder.run_script(str(source))  # which reads it, and runs nothing
        found: list[dict[str, Any]] = [vars(module) for module in finder.modules.values()]
        files = {source, *(Path(one["__file__"]) for one in found if one["__file__"])}
        return sorted(files) if source.is_file() else []
    spec = find_spec(source.name.partition(".")[0])
    if spec and (folders := spec.submodule_search_locations):
        return sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    return [Path(spec.origin)] if spec and spec.origin else []


def local_folder(source: str) -> Path | None:
    """Return the folder `source`, or that of a hub id in the hub's cache; None if not here."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache  # only where it is asked for

    try:
        found = try_to_load_from_cache(source, "config.json")
    except ValueError:  # no hub id
        return None
    return Path(found).parent if isinstance(found, str) else None
