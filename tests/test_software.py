"""The software of a measurement, and what of its environment decides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalebench_lib.config import Config
from scalebench_lib.record import RUNNER_ENVIRONMENT, Software, model_files_digest, speed_variables


@pytest.mark.parametrize(
    "name",
    [
        *("OMP_NUM_THREADS", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "MKL_ENABLE_INSTRUCTIONS"),
        *("OPENBLAS_CORETYPE", "ONEDNN_MAX_CPU_ISA", "DNNL_VERBOSE", "TORCH_LOGS_OUT"),
        *("TORCHINDUCTOR_FREEZING", "TORCHDYNAMO_DISABLE", "ATEN_CPU_CAPABILITY"),
        *("MALLOC_ARENA_MAX", "TCMALLOC_RELEASE_RATE", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE"),
        *("ORT_DISABLE_ALL", "OV_CPU_THREADS", "PYTORCH_JIT", "LRU_CACHE_CAPACITY", "MKL_CBWR"),
    ],
)
def test_what_changes_results_or_speed_decides(name: str) -> None:
    assert speed_variables({name: "1", "HOME": "/root"}) == {name: "1"}


@pytest.mark.parametrize(
    "name",
    [
        *("TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TORCH_LOGS", "OV_CACHE", "ORT_LIBRARY_PATH"),
        *("PATH", "HOME", "LANG", "MY_OMP_NUM_THREADS", "OMPI_COMM_WORLD_RANK", "LD_LIBRARY_PATH"),
        "SCALEBENCH_RUNNER",
    ],
)
def test_places_and_all_else_do_not(name: str) -> None:
    """They may hold more of the user than is ours to keep."""
    assert speed_variables({name: "1"}) == {}


def test_an_empty_variable_is_as_good_as_none() -> None:
    """Shells leave them behind."""
    assert speed_variables({"OMP_NUM_THREADS": ""}) == {}


def test_preloaded_libraries_and_compilers_are_told_by_their_file_names() -> None:
    """Their folder is another on each machine."""
    both = speed_variables({"LD_PRELOAD": "/home/me/lib/libjemalloc.so.2 /opt/libmine.so"})
    assert both == {"LD_PRELOAD": "libjemalloc.so.2:libmine.so"}
    assert speed_variables({"CXX": "/home/me/bin/g++-13"}) == {"CXX": "g++-13"}


def test_a_model_is_told_by_the_files_that_it_is_read_from(tmp_path: Path) -> None:
    """Its weights are read where they are not random: from there, or from elsewhere."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for folder in (tmp_path, weights):
        (folder / "model.safetensors").write_bytes(b"1")
    (tmp_path / "config.json").write_text("{}")

    def told() -> list[str | None]:
        sources = ("random", "pretrained", str(weights))
        return [model_files_digest(Config(model=str(tmp_path), weights=one)) for one in sources]

    random, own, other = told()
    assert len({random, own, other} - {None}) == 2  # random, and the same weights from elsewhere
    (weights / "model.safetensors").write_bytes(b"2")
    assert told()[:2] == [random, own]
    assert told()[2] not in (random, own)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 1}')
    assert {random, own}.isdisjoint(told())


def test_a_model_without_files_is_told_by_its_name_alone() -> None:
    assert model_files_digest(Config()) is None
    assert model_files_digest(Config(model="nobody/has-this", weights="pretrained")) is None


def test_a_model_of_the_hub_is_told_by_what_the_cache_holds(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = str(tmp_path / "config.json")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: found)
    assert model_files_digest(Config(model="org/one")) == model_files_digest(
        Config(model=str(tmp_path))
    )


def test_a_kernel_records_the_environment_of_its_runner(monkeypatch) -> None:
    """A kernel's own also holds what it was started with."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert Software.here().environment["OMP_NUM_THREADS"] == "7"
    monkeypatch.setenv(RUNNER_ENVIRONMENT, json.dumps({"OMP_WAIT_POLICY": "active"}))
    assert Software.here().environment == {"OMP_WAIT_POLICY": "active"}


@pytest.mark.parametrize(
    ("inside", "toolkit", "recorded"),
    [
        ("2.13.0+cu130", "13.0", "2.13.0+cu130"),
        ("2.13.0+cpu", None, "2.13.0+cpu"),
        ("2.13.0", "13.0", "2.13.0+cuda13.0"),
        ("2.13.0", None, "2.13.0"),
    ],
)
def test_builds_of_torch_have_versions_of_their_own(tmp_path, inside, toolkit, recorded) -> None:
    """The package index calls all of them 2.13.0; torch need not be imported to know."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('slow')")
    built = f"__version__ = {inside!r}\ncuda = {toolkit!r}\nhip = None\n"
    (tmp_path / "torch" / "version.py").write_text(built)
    (tmp_path / "torch-2.13.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.4\nName: torch\nVersion: 2.13.0\n"
    (tmp_path / "torch-2.13.0.dist-info" / "METADATA").write_text(metadata)
    code = "from scalebench_lib.record import Software; print(Software.here().versions['torch'])"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == recorded


def software(**environment: str) -> Software:
    """With these variables."""
    return Software(python="3.12", scalebench="0", versions={"torch": "2"}, environment=environment)


def test_two_softwares_differ_in_versions_or_in_the_environment_that_decides() -> None:
    """The first difference is named, with both values."""
    one = software(OMP_NUM_THREADS="2")
    assert one.differs_from(one) is None
    assert one.differs_from(software()) == "OMP_NUM_THREADS 2 against None"
    newer = one.model_copy(update={"versions": {"torch": "3"}})
    assert one.differs_from(newer) == "torch 2 against 3"
    assert one.differs_from(one.model_copy(update={"scalebench": "1"})) is None


def test_an_engine_of_another_version_is_other_software_where_both_have_it() -> None:
    """Nothing was measured with one that was not there."""
    old, new = (
        software().model_copy(update={"versions": {"torch": "2", "openvino": each}})
        for each in ("2025.3", "2026.4")
    )
    assert old.differs_from(new) == "openvino 2025.3 against 2026.4"
    assert old.differs_from(software()) is None
    assert software().differs_from(old) is None


def test_how_an_allocator_is_loaded_does_not_count() -> None:
    """Every trial asks which one it has."""
    intel = software(LD_PRELOAD="libtcmalloc.so.4:libiomp5.so")
    assert intel.differs_from(software()) == "LD_PRELOAD libiomp5.so against None"
    assert intel.differs_from(software(LD_PRELOAD="libiomp5.so")) is None
    one = software(LD_PRELOAD="libtcmalloc.so.4", MALLOC_ARENA_MAX="1")
    assert one.differs_from(software(), "tcmalloc") is None
    assert one.differs_from(software()) == "MALLOC_ARENA_MAX 1 against None"
    kept = software(MALLOC_ARENA_MAX="1", MALLOC_MMAP_MAX_="0")
    assert kept.differs_from(one, "glibc-keep") is None
    assert kept.differs_from(software(), "glibc-keep") == "MALLOC_ARENA_MAX 1 against None"
