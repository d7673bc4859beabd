"""Numbers as they are told to people."""

import pytest

from scalebench_lib.text import format_duration, format_number, pluralize


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.1234, "0.123"), (9.1, "9.10"), (99.94, "99.9"), (99.96, "100"), (1234.5, "1,234")],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, told: str) -> None:
    assert format_number(value) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [(57.9123, "57.91"), (999.94, "999.9"), (999.96, "1,000"), (2e7, "20,000,000")],
)
def test_more_digits_are_told_where_they_are_asked_for(value: float, told: str) -> None:
    assert format_number(value, 4) == told


@pytest.mark.parametrize(("count", "told"), [(0, "0 cores"), (1, "1 core"), (2, "2 cores")])
def test_one_thing_is_told_in_the_singular(count: int, told: str) -> None:
    assert pluralize(count, "core") == told


@pytest.mark.parametrize(
    ("seconds", "told"), [(44.6, "45 s"), (90, "2 min"), (620, "10 min"), (9000, "2.5 h")]
)
def test_a_duration_is_told_in_the_unit_that_fits(seconds: float, told: str) -> None:
    assert format_duration(seconds) == told
