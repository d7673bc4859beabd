"""What all tests share."""

import pytest

from scalebench_lib.sweep.locks import PLACE
from tests import chromium


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


@pytest.fixture(scope="module")
def browser():
    """One for a module, and ended with it: other tests need asyncio."""
    if not chromium.found():
        names = ", ".join(chromium.NAMES)
        pytest.skip(f"no browser: none of {names} is on the PATH; .ci/run installs one as root")
    with chromium.launched() as running:
        yield running
