"""What was explored, kept: pictures and their data as files in the sweep's folder."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from PIL import Image

EXPLORED = "explored"
"""The folder in a sweep's for what is saved."""


def save(out: Path, title: str, ending: str, content: bytes) -> Path:
    """Write `content` into ``explored/`` of sweep `out`, named by `title`; nothing is replaced.

    Raises OSError where that cannot be written.
    """
    folder = out / EXPLORED
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.]+", "-", title.lower()).strip("-")
    paths = (folder / f"{name}{f'-{i}' * (i > 1)}{ending}" for i in count(1))
    path = next(path for path in paths if not path.exists())
    path.write_bytes(content)
    return path


def stacked(pngs: Sequence[bytes]) -> bytes:
    """PNG pictures as one, each under the one before."""
    if len(pngs) == 1:
        return pngs[0]
    images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
    size = max(image.width for image in images), sum(image.height for image in images)
    whole, top = Image.new("RGB", size, "white"), 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    buffer = io.BytesIO()
    whole.save(buffer, "png", optimize=True)
    return buffer.getvalue()
