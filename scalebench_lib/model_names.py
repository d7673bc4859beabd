"""Models by name: titles, tasks, limits; and the folder, hub id or own function that is meant."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from importlib.util import find_spec
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from scalebench_lib.errors import RequestError, unknown_message

MODELS = {
    "bert": "BERT",
    "bert-tiny": "BERT tiny",
    "distilbert": "DistilBERT",
    "gpt2": "GPT-2",
    "resnet50": "ResNet-50",
}
"""Model names and their titles; `measure.models` builds them, and any folder or hub id."""

_TITLES = {**MODELS, "inception": "Inception"}  # of published files

TAKES_IMAGES = ("resnet50",)

DECODERS = ("gpt2",)

LONGEST = {"bert": 512, "bert-tiny": 512, "distilbert": 512, "gpt2": 1024}
"""Most tokens of the models known by name; those of others are known when they are built."""

# fmt: off
TASKS = (
    "audio-classification", "audio-frame-classification", "audio-xvector", "causal-lm", "ctc",
    "depth-estimation", "image-classification", "image-segmentation", "masked-image-modeling",
    "masked-lm", "next-sentence-prediction", "object-detection", "pretraining",
    "question-answering", "semantic-segmentation", "seq2seq-lm", "sequence-classification",
    "speech-seq2seq", "text-encoding", "token-classification", "universal-segmentation",
    "video-classification", "zero-shot-image-classification",
)
"""Heads of models, as in the names of transformers' ``AutoModelFor…``."""

# Of classes that are not named after their task, by the ends of their names.
_CLASSES = {
    "LMHeadModel": "causal-lm", "T5EncoderModel": "text-encoding",
    "WhisperForConditionalGeneration": "speech-seq2seq", "ForConditionalGeneration": "seq2seq-lm",
}
# fmt: on
_DEFAULT_TASKS = {"gpt2": "causal-lm"}  # the others known by name have no head, as published

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


def normalized_model_name(name: str) -> str:
    """Return a known name, the user's function, or a folder or hub id, which have a slash."""
    if name in MODELS:
        return name
    if not name.isprintable() or not slug(name):
        raise ValueError(f"must be a name, a folder or a hub id, not {name!r}")
    if is_own(name):
        return os.path.normpath(name)
    if _is_model(name):
        folder = str(Path(name))  # "a/.." stays: a may be a link
        return folder if "/" in folder else f"./{folder}"
    if "/" not in name:
        raise ValueError(f"{unknown_message('model', name, MODELS)}, or a folder or hub id")
    return name


def _is_model(folder: str) -> bool:
    with suppress(OSError):  # too long a name
        return Path(folder, "config.json").is_file()
    return False


def slug(model: str) -> str:
    """Return a model's name for file names: the last part of a folder or hub id."""
    return re.sub(r"(\.py(?=:))?[^A-Za-z0-9_.-]+", "_", Path(model).name).strip("._-")


def model_title(model: str, task: str = "none") -> str:
    """``GPT-2, causal LM``; the last part of a folder or hub id; without a head no task."""
    title, head = _TITLES.get(model) or slug(model), task.replace("-", " ").replace(" lm", " LM")
    return title if task == "none" else f"{title}, {head}"


def resolved_task(model: str, task: str, phase: str = "forward") -> str:
    """Return the task that ``auto`` means: still ``auto`` for a hub id that was never downloaded.

    Phases that generate tokens have a language head. Raises `RequestError` where the model's own
    task is not one of `TASKS`.
    """
    if task == "auto" and phase != "forward":
        return "causal-lm"
    if task != "auto" or model in MODELS or is_own(model):
        return _DEFAULT_TASKS.get(model, "none") if task == "auto" else task
    if not (folder := local_folder(model)):
        return "auto"
    names = None
    with suppress(OSError, ValueError, AttributeError):  # reported when it is built
        names = json.loads((folder / "config.json").read_bytes()).get("architectures")
    if names and not task_of_class(names[0]):
        raise RequestError(f"task: {names[0]!r} has none of {', '.join(TASKS)}: say one, or 'none'")
    return task_of_class(names[0]) if names else "none"


def task_of_class(name: str) -> str:
    """``masked-lm`` for the class ``BertForMaskedLM``, ``none`` without a head; else empty."""
    ends = _CLASSES | {f"For{task.replace('-', '')}": task for task in TASKS}
    tasks = (task for end, task in ends.items() if name.lower().endswith(end.lower()))
    return next(tasks, "" if "For" in name else "none")


def require_model(model: str) -> None:
    """Raise `RequestError` where `model` is a folder that holds no model."""
    if is_own(model) and not own_files(model):
        raise RequestError(f"model: there is no {model.rpartition(':')[0]} to take {model!r} from")
    is_hub_id = is_own(model) or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model)
    if model in MODELS or is_hub_id or _is_model(model):
        return
    raise RequestError(f"model: {model!r} is no folder with a config.json, and no hub id")
