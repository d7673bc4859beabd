"""Pictures and sentences of the trust notebook."""

import pandas as pd
import pytest

from scalebench_lib.analysis import evidence

RATIOS = pd.DataFrame(
    {
        "batch_size": [1, 4],
        "threads": [1, 2],
        "ratio": [0.99, 1.02],
        "lowest turn": [0.9, 0.98],
        "highest turn": [1.1, 1.05],
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
APART = pd.DataFrame({"headline": [0.01, 0.02], "raw": [0.05, 0.2], "compatible": [True, False]})


@pytest.mark.parametrize(
    "figure",
    [
        lambda: evidence.ratios({"bare loop": RATIOS}),
        lambda: evidence.hogs(HOGS),
        lambda: evidence.differences(APART),
    ],
)
def test_each_experiment_has_a_picture(figure) -> None:
    """That can be drawn, and says what it is."""
    made = figure()
    assert made.png().startswith(b"\x89PNG")
    assert made.alt


def test_sentences_are_computed_from_the_tables() -> None:
    """Nothing is typed."""
    assert "ratio 1.005 in the median of 2 points, 0.990 to 1.020" in evidence.about_ratios(
        "bare loop", RATIOS
    )
    assert "mean 40.0%, raw median 20.0%, headline 1.0%" in evidence.about_hogs(HOGS)
    counts = pd.DataFrame({"samples": [90, 10], "disturbed": [1, 2]})
    told = evidence.about_differences(APART, [counts])
    assert "worst 2.0%" in told
    assert "compatible in 50%" in told
    assert "3.0% of the samples" in told
