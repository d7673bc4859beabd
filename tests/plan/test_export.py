"""A plan handed over: a script that runs it, and what Triton serves."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

from scalebench_lib.analysis.published import import_published
from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError
from scalebench_lib.plan.export import export
from tests import factories
from tests.plan.test_decide import PUBLISHED, ask

SAID = ("the plan serves batch 8", "and what that assumes")

SOFTWARE = factories.SOFTWARE.model_copy(
    update={"environment": {"OMP_NUM_THREADS": "9", "GLIBC_TUNABLES": "a b=$(1)"}}
)
TEXT, INT, ENUM, MESSAGE = (
    descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{name}")
    for name in ("STRING", "INT32", "ENUM", "MESSAGE")
)
SCHEMA = {
    "ModelParameter": [("string_value", 1, TEXT, "")],
    "ModelInstanceGroup": [("count", 2, INT, ""), ("kind", 4, ENUM, "Kind")],
    "ModelDynamicBatching": [("*preferred_batch_size", 1, INT, "")],
    "Parameters": [("key", 1, TEXT, ""), ("value", 2, MESSAGE, "ModelParameter")],
    "ModelConfig": [
        ("name", 1, TEXT, ""),
        ("backend", 17, TEXT, ""),
        ("max_batch_size", 4, INT, ""),
        ("dynamic_batching", 11, MESSAGE, "ModelDynamicBatching"),
        ("*instance_group", 7, MESSAGE, "ModelInstanceGroup"),
        ("*parameters", 14, MESSAGE, "Parameters"),
    ],
}
"""The part of Triton's ``model_config.proto`` that is written; a map is a repeated entry."""
KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")


def parsed(path: Path) -> Message:
    """The file at `path` as Triton reads it; text_format raises where a field is none of it."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config", package="inference")
    kinds = file.enum_type.add(name="Kind")
    for number, name in enumerate(KINDS):
        kinds.value.add(name=name, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            label = 3 if field.startswith("*") else 1
            added = message.field.add(name=field.strip("*"), number=number, type=kind, label=label)
            if of:
                added.type_name = f".inference.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(path.read_text(), made())


def sweep(out: Path, optimizations: Iterable[str]) -> Path:
    """A sweep of a made-up machine of 2 cores, with an environment."""
    on = factories.machine(cores=2, smt=False)
    records = [factories.measured(c, on) for c in factories.configs(on, (1, 4), optimizations)]
    return factories.save_sweep(
        out, [record.model_copy(update={"software": SOFTWARE}) for record in records]
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What an engine's model is, as it lies in the folder of exports."""
    folder = tmp_path / "engine"
    folder.mkdir()
    for name in ("model.onnx", "model.onnx.data", "manifest.json"):
        (folder / name).write_text(name)
    return folder


def nothing(config: Config) -> Path:
    """The files of an engine that has none."""
    raise AssertionError(config)


def test_the_script_is_clean_and_runs_every_instance_as_it_was_measured(tmp_path: Path) -> None:
    """On its CPUs, with its threads and the measurement's environment; a failure is its own."""
    decision = ask(sweep(tmp_path / "sweep", ("none",)), batch_size=8)
    assert len(decision.best.instances) == 2
    folder = export(decision, SAID, tmp_path / "plan", nothing)
    script = folder / "run.sh"
    assert f"# {SAID[0]};" in script.read_text()
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    checked = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")
    taskset = tmp_path / "bin" / "taskset"  # this machine may have other CPUs
    taskset.parent.mkdir()
    taskset.write_text('#!/bin/sh\nCPUS=$2; export CPUS; shift 2; exec "$@"\n')
    taskset.chmod(0o755)
    env = {**os.environ, "PATH": f"{taskset.parent}:{os.environ['PATH']}"}
    told = 'echo "$INSTANCE $CPUS $OMP_NUM_THREADS $BATCH_SIZE $GLIBC_TUNABLES"; exit $INSTANCE'
    run = subprocess.run(
        [script, "sh", "-c", told], env=env, capture_output=True, text=True, check=False
    )
    assert sorted(run.stdout.splitlines()) == ["1 0 1 4 a b=$(1)", "2 1 1 4 a b=$(1)"]
    assert run.returncode == 2
    assert subprocess.run([script], env=env, capture_output=True, check=False).returncode == 2
    readme = (folder / "README.md").read_text()
    assert readme.startswith(f"# {SAID[0]}\n")
    assert f"Measured on {decision.context.machine.title}: numpy 2.2.0" in readme
    assert "triton" not in readme
    assert not (folder / "triton").exists()


@pytest.mark.parametrize(
    ("optimization", "backend", "parameters"),
    [
        (
            "onnxruntime",
            "onnxruntime",
            {"intra_op_thread_count": "1", "inter_op_thread_count": "1"},
        ),
        (
            "openvino-bf16",
            "openvino",
            {"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", "HINT_BF16": "YES"},
        ),
    ],
)
def test_what_an_engine_computes_is_a_triton_repository(
    tmp_path: Path, files: Path, optimization: str, backend: str, parameters: dict
) -> None:
    """Of one model for each kind of instance, whose config Triton's own schema parses."""
    asked = []
    decision = ask(sweep(tmp_path / "sweep", (optimization,)), batch_size=8)
    folder = export(
        decision,
        SAID,
        tmp_path / "plan",
        lambda config: asked.append(config) or files,
    )
    assert [(one.optimization, one.batch_size) for one in asked] == [(optimization, 4)]
    (model,) = (folder / "triton").iterdir()
    config = parsed(model / "config.pbtxt")
    assert (config.name, config.backend) == (model.name, backend)
    assert config.max_batch_size == 4
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert [(one.count, KINDS[one.kind]) for one in config.instance_group] == [(2, "KIND_CPU")]
    assert {one.key: one.value.string_value for one in config.parameters} == parameters
    assert {path.name for path in (model / "1").iterdir()} == {"model.onnx", "model.onnx.data"}
    readme = (folder / "README.md").read_text()
    assert "taskset -c 0-1\ntritonserver" in readme
    assert "Triton shares these CPUs among all instances; this was not measured." in readme
    assert "weights of the model in triton/ are random" in readme
    assert "in those of 1 thread" in readme
    assert readme.count(SAID[0]) == 1
    mixed = replace(decision, context=replace(decision.context, lengths=((16, 0.7), (128, 0.3))))
    folder = export(mixed, SAID, tmp_path / "mixed", lambda config: files)
    tokens = {model.name.rpartition("-")[2] for model in (folder / "triton").iterdir()}
    assert tokens == {"16_tokens", "128_tokens"}


def test_an_import_is_exported_for_what_it_is_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(PUBLISHED.replace("none", "onnxruntime"))
    import_published([tmp_path / "a.csv"], tmp_path / "out", "there")
    decision = ask(tmp_path / "out", batch_size=8)
    readme = (export(decision, SAID, tmp_path / "plan", nothing) / "README.md").read_text()
    assert all(line in readme for line in SAID)
    assert "its CPU numbers are made up" in readme
    assert "software not known" in readme
    with pytest.raises(RequestError, match="is already there: choose a new folder"):
        export(decision, SAID, tmp_path / "plan", nothing)
