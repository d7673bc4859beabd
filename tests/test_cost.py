"""Machines for a rate, and what requests cost."""

from math import inf, nan

import pytest

from scalebench_lib.cost import fleet
from scalebench_lib.errors import RequestError
from scalebench_lib.stats import Interval, VarianceEstimate

KNOWN = Interval(110.0, VarianceEstimate(0.0025, df=inf))
"""Requests/s, from 100 on."""


def test_machines_have_the_low_end_of_their_rate_less_a_margin() -> None:
    """80 requests/s each: 12.5 machines for 1000, so 13."""
    assert KNOWN.low == pytest.approx(100, rel=0.01)
    assert fleet(KNOWN, 3.6, 1000.0)[0] == 13
    assert fleet(KNOWN, 3.6, 10.0)[0] == 1
    assert fleet(Interval(100.0, VarianceEstimate(inf)), 3.6, 801.0)[0] == 11


def test_a_million_requests_cost_the_hours_of_all_machines() -> None:
    """At 3.60 an hour a second is 0.001; an idle machine costs as much as a busy one."""
    unknown = Interval(100.0, VarianceEstimate(inf))
    assert fleet(unknown, 3.6, 1000.0)[1] == pytest.approx(13e6 * 0.001 / 1000)
    assert fleet(unknown, 3.6, 10.0)[1] == pytest.approx(1e6 * 0.001 / 10)
    assert fleet(unknown, 3.6)[1] == pytest.approx(1e6 * 0.001 / 80)


@pytest.mark.parametrize(("price", "rate"), [(-1.0, 1.0), (nan, 1.0), (1.0, inf), (1.0, -2.0)])
def test_what_is_no_price_or_rate_is_refused(price: float, rate: float) -> None:
    with pytest.raises(RequestError, match="must be a number of at least 0"):
        fleet(KNOWN, price, rate)
