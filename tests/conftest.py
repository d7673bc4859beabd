"""What all tests share."""

import pytest

from scalebench_lib.sweep.locks import PLACE


@pytest.fixture(autouse=True, scope="session")
def _a_runtime_folder_of_our_own(tmp_path_factory: pytest.TempPathFactory):
    """Tests neither wait for sweeps of this machine nor hold them up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACE, str(tmp_path_factory.mktemp("runtime")))
        yield
