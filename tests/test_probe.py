"""The probe and the roof: fixed work, on as many threads as torch uses."""

import time

import torch

from scalebench_lib.measure.probe import Probe
from scalebench_lib.measure.roof import peak_gflops


def test_the_probe_takes_a_few_milliseconds_and_changes_nothing() -> None:
    """Between a tenth of a millisecond and a tenth of a second, on any machine."""
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    probe = Probe()
    probe()
    start = time.perf_counter()
    probe()
    assert 1e-4 < time.perf_counter() - start < 1e-1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_roof_is_above_what_the_probe_reaches() -> None:
    """A large product runs at least as fast as a small one, by and large."""
    peaks = peak_gflops()
    assert set(peaks) <= {"fp32", "bf16", "int8"}
    assert peaks["fp32"] > 1
