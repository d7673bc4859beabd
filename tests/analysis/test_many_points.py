"""A sweep of two thousand points is explored without waiting, and its page can be sent."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scalebench_lib.analysis.explorer import Explorer
from scalebench_lib.analysis.page import write_page
from scalebench_lib.record import Record
from tests import factories
from tests.tools.scale import varied

pytestmark = pytest.mark.stress
SAMPLES = 40


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole page of 16 cores with SMT: 11 batch sizes, 4 optimizations, 48 placements."""
    on, noise = factories.machine(), np.random.default_rng(0)
    names = ("none", "script", "bf16", "openvino")

    def record(config) -> Record:
        found = factories.measured(config, on)
        points = tuple(varied(point, SAMPLES, noise) for point in found.points)
        return found.model_copy(update={"points": points})

    records = map(record, factories.configs(on, optimizations=names))
    return factories.save_sweep(tmp_path_factory.mktemp("many") / "sweep", records)


def seconds(action: Callable[[], object]) -> float:
    """CPU seconds of this process, so that neighbours do not count."""
    began = time.process_time()
    action()
    return time.process_time() - began


def test_a_choice_is_answered_in_less_than_300_ms(out: Path) -> None:
    """In the median, over every view and what can be chosen in it."""
    explorer, taken = Explorer(out, out.parent), []

    def choose(control: str, value: object) -> None:
        chosen = explorer.choices.get(control) or getattr(explorer, control)
        taken.append(seconds(lambda: setattr(chosen, "value", value)))

    for _, view in explorer.view.options:
        choose("view", view)
        for metric in ("throughput", "latency"):
            choose("metric", metric)
        for size in (8, 1024):
            choose("batch_size", size)
        for name in ("bf16", "script"):
            choose("optimization", name)
        choose("scale", "log")
        choose("scale", "auto")
    assert len(explorer._load(explorer.sweep.value).table) == 2112
    assert np.median(taken) <= 0.3


def test_the_page_takes_half_a_minute_at_most_and_can_be_sent(out: Path) -> None:
    """One file of at most 5 MB."""
    assert seconds(lambda: write_page(out)) <= 30
    assert (out / "index.html").stat().st_size <= 5e6
