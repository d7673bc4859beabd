"""Hints and one-line messages."""

from scalebench_lib.errors import nearest


def test_a_near_name_is_suggested_and_a_far_one_gets_the_list() -> None:
    assert nearest("brt", ["bert", "gpt2"]) == "did you mean 'bert'?"
    assert nearest("zzz", ["bert", "gpt2"]) == "known: bert, gpt2"
