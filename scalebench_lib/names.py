"""What models are called: names, folders and hub ids, and what is known of them beforehand."""

from __future__ import annotations

import re
from pathlib import Path

from scalebench_lib.errors import RequestError, nearest

MODELS = {
    "bert": "BERT",
    "bert-tiny": "BERT tiny",
    "distilbert": "DistilBERT",
    "gpt2": "GPT-2",
    "resnet50": "ResNet-50",
}
"""Model names and their titles; `measure.models` builds them, and any folder or hub id."""

TAKES_IMAGES = ("resnet50",)
"""Those that take images; all others by name take text."""

LONGEST = {"bert": 512, "bert-tiny": 512, "distilbert": 512, "gpt2": 1024}
"""Most tokens of the models known by name; others tell when they are built."""

DEFAULT_IMAGE_SIZE = 224
"""Pixels a side: what the published vision models take."""


def model_name(name: str) -> str:
    """A known name, or a folder or hub id: always with a slash, so that it is told from names."""
    if name in MODELS:
        return name
    if not name.isprintable() or not slug(name):
        raise ValueError(f"must be a name, a folder or a hub id, not {name!r}")
    if "/" in name:
        return name
    if Path(name, "config.json").is_file():
        return f"./{name}"
    raise ValueError(f"unknown model {name!r}: {nearest(name, MODELS)}, or a folder or hub id")


def slug(model: str) -> str:
    """A model's name as part of a file's: the last part of a folder or hub id."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(model).name).strip("._-")


def require_model(model: str) -> None:
    """Raise `RequestError` where `model` is a folder that holds no model."""
    is_hub_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model)
    if model in MODELS or is_hub_id or Path(model, "config.json").is_file():
        return
    raise RequestError(f"model: {model!r} is no folder with a config.json, and no hub id")
