"""What all tests share."""

import pytest

from scalebench_lib.sweep.locks import PLACE


@pytest.fixture(autouse=True, scope="session")
def _a_runtime_folder_of_our_own(tmp_path_factory: pytest.TempPathFactory):
    """Tests neither wait for sweeps of this machine nor hold them up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACE, str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _exports_of_our_own(tmp_path_factory: pytest.TempPathFactory):
    """Tests export and compile into a folder of this run, never into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        patch.setenv("SCALEBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
