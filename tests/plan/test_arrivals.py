"""When requests arrive: made, or read from a trace that may be wrong."""

from pathlib import Path

import numpy as np
import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.plan.arrivals import arrival_times, read_trace


@pytest.mark.parametrize(
    ("kind", "variation"),
    [("poisson", 1.0), ("constant", 0.0), ("gamma:2", 2.0), ("gamma:.5", 0.5)],
)
def test_gaps_have_the_rate_and_the_variation_asked_for(kind: str, variation: float) -> None:
    """The same each time, and at another rate in proportion."""
    times = arrival_times(kind, 200, 100_000)
    gaps = np.diff(times, prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05, abs=1e-6)
    assert np.allclose(arrival_times(kind, 100, 100_000), 2 * times)


@pytest.mark.parametrize("kind", ["posson", "gamma", "gamma:0", "gamma:x", "gamma:-1", "poisson:2"])
def test_other_arrivals_are_refused(kind: str) -> None:
    with pytest.raises(RequestError, match="must be poisson, constant, or gamma:CV"):
        arrival_times(kind, 200, 10)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "at least one"),
        ("0.1\n0.3\n0.2\n", "number 3 is 0.2: sort them"),
        ("-1\n2\n", "number 1 is -1"),
        ("0.1\nnan\n", "number 2 is nan"),
        ("0.1\nsoon\n", "one time in s a line"),
        ("1 2\n3 4\n", "one time in s a line"),
        (None, "not found"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_trace_that_is_wrong_gets_one_line(text: str | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError, match=why) as caught:
        read_trace(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.stress
def test_a_trace_of_ten_million_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("".join(f"{n / 1000}\n" for n in range(10_000_000)))
    assert read_trace(path)[-1] == 9_999.999
