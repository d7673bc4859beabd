"""The software of a measurement, and what of its environment decides."""

import json

import pytest

from scalebench_lib.record import RUNNERS, Software, deciding


@pytest.mark.parametrize(
    "name",
    [
        *("OMP_NUM_THREADS", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "MKL_ENABLE_INSTRUCTIONS"),
        *("OPENBLAS_CORETYPE", "ONEDNN_MAX_CPU_ISA", "DNNL_VERBOSE", "TORCH_LOGS_OUT"),
        *("TORCHINDUCTOR_FREEZING", "TORCHDYNAMO_DISABLE", "ATEN_CPU_CAPABILITY"),
        *("MALLOC_ARENA_MAX", "TCMALLOC_RELEASE_RATE", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE"),
        *("ORT_DISABLE_ALL", "OV_CPU_THREADS"),
    ],
)
def test_what_changes_results_or_speed_decides(name: str) -> None:
    assert deciding({name: "1", "HOME": "/root"}) == {name: "1"}


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
    assert deciding({name: "1"}) == {}


def test_an_empty_variable_is_as_good_as_none() -> None:
    """Shells leave them behind."""
    assert deciding({"OMP_NUM_THREADS": ""}) == {}


def test_preloaded_libraries_are_told_by_their_file_names() -> None:
    """Their folder is another on each machine."""
    both = deciding({"LD_PRELOAD": "/home/me/lib/libjemalloc.so.2 /opt/libmine.so"})
    assert both == {"LD_PRELOAD": "libjemalloc.so.2:libmine.so"}


def test_a_kernel_records_the_environment_of_its_runner(monkeypatch) -> None:
    """A kernel's own also holds what it was started with."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert Software.here().environment["OMP_NUM_THREADS"] == "7"
    monkeypatch.setenv(RUNNERS, json.dumps({"OMP_WAIT_POLICY": "active"}))
    assert Software.here().environment == {"OMP_WAIT_POLICY": "active"}


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


def test_how_an_allocator_is_loaded_does_not_count() -> None:
    """Every trial asks which one it has."""
    one = software(LD_PRELOAD="libtcmalloc.so.4", MALLOC_ARENA_MAX="1")
    assert one.differs_from(software(), "tcmalloc") is None
    assert one.differs_from(software()) == "MALLOC_ARENA_MAX 1 against None"
