"""How noisy the machine is."""

import pytest

from scalebench_lib.measure.noise import Noise, probe_noise


@pytest.mark.parametrize(
    ("noise", "begins"),
    [
        (Noise(10, 10.2, 11), "Quiet"),
        (Noise(10, 10.2, 18), "Disturbed at times"),
        (Noise(10, 13, 18), "Noisy"),
    ],
)
def test_the_advice_follows_from_the_probe(noise: Noise, begins: str) -> None:
    """Each state says what to do."""
    assert noise.advice.startswith(begins)


def test_the_probe_is_ordered() -> None:
    """Best, typical, worst, of a real machine."""
    noise = probe_noise(seconds=0.2)
    assert 0 < noise.best <= noise.typical <= noise.worst
