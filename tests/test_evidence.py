"""Pictures and sentences of the trust notebook."""

import numpy as np
import pandas as pd
import pytest

from scalebench_lib.analysis import evidence

RATIOS = pd.DataFrame(
    {
        "batch_size": [1, 4],
        "threads": [1, 2],
        "ratio": [0.99, 1.02],
        "low": [0.9, 0.98],
        "high": [1.1, 1.05],
    }
)
HOGS = pd.DataFrame(
    {
        "hog": ["quiet", "cpu"],
        "threads": [1, 1],
        "mean": [0.0, 0.4],
        "raw median": [0.0, 0.2],
        "headline": [0.0, -0.01],
        "disturbed": [0.0, 0.5],
    }
)
BESIDE = pd.DataFrame(
    {"model": "bert", "kind": ["warm", "warm", "fresh"], "beside_s": [0.9, 1.1, 7.0]}
)
PASSES = pd.DataFrame(
    {
        "hog": ["quiet", "cpu"],
        "threads": [1, 1],
        "seconds": [0.1, 0.2],
        "latency_ms": [5.0, 9.0],
        "disturbed": [False, True],
    }
)
APART = pd.DataFrame({"headline": [0.01, 0.02], "raw": [0.05, 0.2], "compatible": [True, False]})


@pytest.mark.parametrize(
    "figure",
    [
        lambda: evidence.ratios({"bare loop": RATIOS}),
        lambda: evidence.hogs(HOGS),
        lambda: evidence.differences(APART),
        lambda: evidence.costs(np.array([0.7, 0.8])),
        lambda: evidence.beside(BESIDE),
        lambda: evidence.passes(PASSES),
    ],
)
def test_each_experiment_has_a_picture(figure) -> None:
    """That can be drawn, and says what it is."""
    made = figure()
    assert made.png().startswith(b"\x89PNG")
    assert made.alt


def test_sentences_are_computed_from_the_tables() -> None:
    """Nothing is typed."""
    told = evidence.about_ratios(RATIOS)
    assert "ratio 1.005 in the median of 2 points, 0.990 to 1.020" in told
    assert "leaves out 1 at 0 of them" in told
    assert "bert, warm: 1.00 s (2 visits)" in evidence.about_beside(BESIDE)
    assert "mean 40.0%, raw median 20.0%, headline 1.0%" in evidence.about_hogs(HOGS)
    counts = pd.DataFrame({"samples": [90, 10], "disturbed": [1, 2]})
    told = evidence.about_differences(APART, [counts])
    assert "worst 2.0%" in told
    assert "compatible in 50%" in told
    assert "3.0% of the samples" in told
