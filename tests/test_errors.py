"""Hints and one-line messages."""

import pytest

from scalebench_lib.errors import did_you_mean, plain, reason_in


def test_a_near_name_is_suggested_and_a_far_one_gets_the_list() -> None:
    assert did_you_mean("brt", ["bert", "gpt2"]) == "did you mean 'bert'?"
    assert did_you_mean("zzz", ["bert", "gpt2"]) == "known: bert, gpt2"


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("no luck\n\nat all", "no luck"),
        ("the config lacks:\n  hidden_size", "the config lacks: hidden_size"),
        (
            "Exception from src/core.cpp:84:\nCheck 'a || b' failed at src/frontend.cpp:117:\n"
            "FrontEnd API failed with GeneralFailure:\nir: Could not open the file\n\n",
            "ir: Could not open the file",
        ),
        (
            "The following operation failed in the TorchScript interpreter.\n"
            'Traceback of TorchScript (most recent call last):\n  File "a.py", line 1, in f\n'
            "RuntimeError: shapes cannot be multiplied\n",
            "RuntimeError: shapes cannot be multiplied",
        ),
        (
            "Failed to export the model. \x1b[96mThis is step 1/3\x1b[0m. Next steps:\n"
            "- Debug\n\n## Exception summary\n\n<class 'torch._dynamo.exc.UserError'>: no proxy\n",
            "UserError: no proxy",
        ),
        (
            "CppCompileError: C++ compile error\n\nCommand:\ng++ a.cpp\n\nOutput:\n"
            "a.cpp:3:1: fatal error: no such file",
            "fatal error: no such file",
        ),
    ],
    ids=["plain", "colon", "openvino", "torchscript", "onnx", "compiler"],
)
def test_the_line_that_says_why_is_told(message: str, why: str) -> None:
    """Engines begin with where they were, and end with advice."""
    assert reason_in(message) == why


def test_no_control_characters_are_left() -> None:
    """Colours would be written into tables and pages."""
    assert plain("\x1b[0;93ma\x1b[m\x07b\r\nc\x00\x9b") == "ab\n\nc"
    assert plain("a\u202eb\u2028c\u200fd\u2069") == "abcd"
