"""A plan handed over: ``run.sh``, a README, and a Triton repository where it serves the engine."""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError
from scalebench_lib.files import write_atomically
from scalebench_lib.model_names import is_own, slug
from scalebench_lib.plan.decide import Context, Decision
from scalebench_lib.plan.profile import Instance
from scalebench_lib.plan.report import server_settings
from scalebench_lib.text import cpu_list

_RUN = """\
#!/bin/sh
# shellcheck disable=SC2016 # values are meant as they stand
# {summary}; README.md says what was measured.
# Runs COMMAND as each instance, which has INSTANCE (1, 2 ...) and BATCH_SIZE in its environment.
[ "$#" -gt 0 ] || {{ echo "usage: $0 COMMAND [ARGUMENT ...]" >&2; exit 2; }}
trap 'for pid in $pids; do kill "$pid"; done' INT TERM
pids="" status=0
{lines}
for pid in $pids; do wait "$pid" || status=$?; done
exit "$status"
"""

_README = """\
# {summary}

{found}

Measured on {machine}: {software}. `./run.sh COMMAND` runs COMMAND as each instance.{triton}
"""

_TRITON = """ `taskset -c {cpus}
tritonserver --model-repository=triton` serves them all in one process, with dynamic batching.
Triton shares these CPUs among all instances; this was not measured."""

_RANDOM = (
    " The weights of the model in triton/ are random, as they were measured: put your own there."
)

_CONFIG = """\
name: "{name}"
backend: "{backend}"
max_batch_size: {batch_size}
instance_group [ {{ count: {count} kind: KIND_CPU }} ]
dynamic_batching {{ preferred_batch_size: [ {batch_size} ] }}
"""
_PARAMETER = 'parameters {{ key: "{}" value: {{ string_value: "{}" }} }}\n'
_PARAMETERS = {
    "onnxruntime": {"intra_op_thread_count": "{threads}", "inter_op_thread_count": "1"},
    "openvino": {"INFERENCE_NUM_THREADS": "{threads}", "NUM_STREAMS": "1"},
}
"""What Triton's backends call the settings of the measurement."""


def export(
    decision: Decision,
    sentences: Sequence[str],
    folder: Path,
    files_of: Callable[[Config], Path | None],
) -> Path:
    """Write the best plan, which `sentences` describe, into the new `folder`, and return it.

    `files_of` returns the folder of an engine's model. Raises `RequestError` if `folder` is there.
    """
    if folder.exists():
        raise RequestError(f"export: {folder} is already there: choose a new folder")
    folder.mkdir(parents=True)
    record, placed, (summary, *rest) = decision.context.record, decision.placed, sentences
    for one, count in Counter(decision.best.instances).items():
        for config in _engine_configs(decision.context, one):
            if files := files_of(config):
                _write_model(config, one.threads, count, folder / "triton", files)
    variables = record.software.environment if record else {}
    kept = {name: value for name, value in variables.items() if name != "OMP_NUM_THREADS"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in kept.items()]
    for number, at in enumerate(placed, 1):
        own = {**at.environment, "INSTANCE": number, "BATCH_SIZE": at.instance.batch_size}
        settings = " ".join(f"{name}={value}" for name, value in own.items())
        lines.append(f'{settings} {at.taskset} "$@" & pids="$pids $!"')
    write_atomically(folder / "run.sh", _RUN.format(summary=summary, lines="\n".join(lines)))
    (folder / "run.sh").chmod(0o755)
    cpus = cpu_list([cpu for one in placed for cpu in one.cpus])
    versions = record.software.versions if record else {"software": "not known"}
    triton = _TRITON.format(cpus=cpus) * (folder / "triton").exists()
    if triton and record and record.config.weights == "random" and not is_own(record.config.model):
        triton += _RANDOM
    readme = _README.format(
        summary=summary,
        found="\n".join(f"- {line}" for line in (*rest, *server_settings(decision))),
        machine=decision.context.machine.title + "; its CPU numbers are made up" * (not record),
        software=", ".join(f"{name} {version}" for name, version in versions.items()),
        triton=triton,
    )
    write_atomically(folder / "README.md", readme)
    return folder


def _engine_configs(context: Context, one: Instance) -> Iterator[Config]:
    """Yield the configs whose models an engine that Triton has serves: one for each length."""
    if context.record and one.optimization.partition("-")[0] in _PARAMETERS:
        config = context.record.config
        for tokens in [length for length, _ in context.lengths] or [config.seq_len]:
            own = {"seq_len": tokens, "batch_size": one.batch_size, **one.settings}
            yield config.model_copy(update=own)


def _write_model(config: Config, threads: int, count: int, triton: Path, files: Path) -> None:
    """Write a model of the repository; Triton reads its inputs and outputs from `files`."""
    backend, _, precision = config.optimization.partition("-")
    shape = f"{threads}x{config.batch_size}-{slug(config.item)}"
    name = f"{slug(config.model)}-{config.optimization}-{shape}"
    ours = shutil.ignore_patterns("manifest.json")
    shutil.copytree(files, triton / name / "1", ignore=ours)
    text = _CONFIG.format(name=name, backend=backend, count=count, batch_size=config.batch_size)
    parameters = _PARAMETERS[backend] | ({"HINT_BF16": "YES"} if precision == "bf16" else {})
    text += "".join(
        _PARAMETER.format(key, value.format(threads=threads)) for key, value in parameters.items()
    )
    write_atomically(triton / name / "config.pbtxt", text)
