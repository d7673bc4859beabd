"""The headline: what the probes explain goes, what they do not is flagged, and it says how sure."""

import numpy as np
import pytest

from scalebench_lib.estimate import PRIOR_EXPONENT
from scalebench_lib.headline import LONG_NS, Headline, PointSamples, headlines

REFERENCE = 4e6


def point(
    latency: np.ndarray, probe: np.ndarray, visits: int = 3, kind: str = "bert"
) -> PointSamples:
    """A point whose samples are spread evenly over `visits`."""
    visit = np.arange(latency.size) * visits // latency.size
    return PointSamples(kind, latency, probe, visit, REFERENCE)


def drifting(
    seed: int, exponent: float = 0.55, level: float = 50e6, size: int = 60, noise: float = 0.01
) -> PointSamples:
    """A machine that slows down by up to 40 % and back; latency follows with `exponent`."""
    random = np.random.default_rng(seed)
    waves = 1 + np.sin(np.arange(size) / size * 6 + random.uniform(0, 6))
    slowness = np.exp(random.uniform(0, 0.2) + 0.1 * waves)
    jitter = np.exp(random.normal(0, noise, size))
    probe = REFERENCE * slowness * np.exp(random.normal(0, 0.01, size))
    return point(level * slowness**exponent * jitter, probe)


def only(samples: PointSamples) -> Headline:
    """The headline of a sweep of one point."""
    return headlines({"it": samples})["it"]


def test_with_a_steady_probe_the_correction_is_nothing() -> None:
    """The headline is the plain median, to the last digit that matters."""
    latency = np.random.default_rng(0).normal(50e6, 1e6, 40)
    found = only(point(latency, np.full(40, REFERENCE), visits=1))
    assert found.value == pytest.approx(np.median(latency), rel=1e-6)


def test_without_probes_the_headline_is_the_plain_median() -> None:
    """As for records from elsewhere."""
    latency = np.random.default_rng(0).normal(50e6, 1e6, 40)
    found = only(point(latency, np.full(40, np.nan), visits=1))
    assert found.value == pytest.approx(np.median(latency), rel=1e-6)


def test_a_slow_machine_is_brought_back_to_the_reference() -> None:
    """Sweeps of the same point differ by 20 % in their medians and hardly in their headlines."""
    sweeps = [drifting(seed) for seed in range(12)]
    headline = np.array([only(sweep).value for sweep in sweeps])
    raw = np.array([np.median(sweep.latency) for sweep in sweeps])
    assert np.ptp(np.log(headline)) < 0.25 * np.ptp(np.log(raw))
    assert headline == pytest.approx(50e6, rel=0.04)


@pytest.mark.parametrize("exponent", [0.4, 0.55, 0.7])
def test_the_exponent_is_learned_from_many_samples(exponent: float) -> None:
    """Points of a kind tell it together."""
    sweep = {seed: drifting(seed, exponent, size=200) for seed in range(6)}
    learned = headlines(sweep)[0].exponent * (1 + 50e6 / LONG_NS)
    assert learned == pytest.approx(exponent, abs=0.08)


def test_few_samples_keep_to_the_prior() -> None:
    """Four samples cannot tell a slope."""
    odd = point(np.array([50e6, 60e6, 50e6, 60e6]), REFERENCE * np.array([1, 1.01, 1, 1.01]))
    assert only(odd).exponent == pytest.approx(PRIOR_EXPONENT, abs=0.1)


def test_probes_beside_long_passes_count_for_less() -> None:
    """They know little of what happened in the seconds between."""
    short, long = drifting(0, level=50e6), drifting(0, level=20e9)
    found = headlines({"short": short, "long": long})
    assert found["long"].exponent < 0.3 * found["short"].exponent


def test_spikes_are_flagged_and_do_not_move_the_headline() -> None:
    """Kept, shown, not counted."""
    calm = drifting(3)
    latency = calm.latency.copy()
    latency[::12] *= 1.5
    found = only(point(latency, calm.probe))
    assert found.disturbed[::12].all()
    assert found.disturbed.sum() <= 7
    assert found.value == pytest.approx(only(calm).value, rel=0.01)


def test_what_is_often_slow_beside_a_steady_probe_is_slow() -> None:
    """An inference engine with two speeds: its headline is its median, as anyone would see it."""
    latency = np.random.default_rng(7).normal(20e6, 0.2e6, 60)
    latency[1::3] *= 1.4
    found = only(point(latency, np.full(60, REFERENCE), visits=1))
    assert not found.disturbed.any()
    assert found.value == pytest.approx(np.median(latency), rel=1e-6)


def test_half_of_the_samples_may_be_disturbed() -> None:
    """A neighbour in the second half, which the probes explain only in part."""
    calm = drifting(4, noise=0.005)
    half = np.where(np.arange(60) < 32, 1.0, 2.0)
    found = only(point(calm.latency * half, calm.probe * half**0.5))
    assert found.value == pytest.approx(only(calm).value, rel=0.05)


def test_a_quiet_machine_has_hardly_a_sample_flagged() -> None:
    """At most 5 % of them."""
    flagged = [only(drifting(seed, noise=0.02)).disturbed.mean() for seed in range(20)]
    assert np.mean(flagged) < 0.05


def test_intervals_are_honest() -> None:
    """Two sweeps whose visits differ by 1 % agree within their intervals nine times in ten."""
    random = np.random.default_rng(5)

    def sweep() -> dict[int, PointSamples]:
        points = {}
        for number in range(6):
            calm = drifting(int(random.integers(1e9)))
            visits = np.exp(random.normal(0, 0.01, 3))[calm.visit]
            points[number] = point(calm.latency * visits, calm.probe)
        return points

    agree = []
    for _ in range(20):
        one, other = headlines(sweep()), headlines(sweep())
        for number in one:
            a, b = one[number], other[number]
            apart = abs(np.log(a.value / b.value))
            agree.append(apart <= np.hypot(np.log(a.high / a.value), np.log(b.high / b.value)))
    assert np.mean(agree) >= 0.9


def test_more_visits_make_a_narrower_interval() -> None:
    """More samples in one visit do not: the difference between processes stays."""

    def width(visits: int, size: int) -> float:
        calm = drifting(6, size=size)
        found = only(point(calm.latency, calm.probe, visits))
        return np.log(found.high / found.low)

    assert width(6, 120) < 0.7 * width(1, 120)
    assert width(1, 480) > 0.8 * width(1, 120)
