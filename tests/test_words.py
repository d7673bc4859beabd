"""What models are called."""

import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.model_names import MODELS, normalized_model_name, require_model, slug


@pytest.mark.parametrize(
    ("name", "short"),
    [("org/my-bert", "my-bert"), ("../x", "x"), ("/a/b c/", "b_c"), ("o/<script>", "script")],
)
def test_a_slug_is_the_last_part_of_a_name_and_safe_in_files(name: str, short: str) -> None:
    """Neither dots in front nor slashes."""
    assert slug(name) == short


def test_known_names_are_their_own_slugs() -> None:
    """Files of a known model begin with its name."""
    assert [slug(name) for name in MODELS] == list(MODELS)
    assert [normalized_model_name(name) for name in MODELS] == list(MODELS)


def test_a_hub_id_may_be_asked_for_and_a_missing_folder_not() -> None:
    """Whether the hub has it is known when it is loaded."""
    require_model("google-bert/bert-base-cased")
    for folder in ("./google-bert", "/no/such/folder", "a/b/c"):
        with pytest.raises(RequestError, match="is no folder with a"):
            require_model(folder)
