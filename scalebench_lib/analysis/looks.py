"""Colours and marks: the same for a name in every figure, on white and on black.

Lines must be told apart by people who see few colours, so each has its own mark too; and be
seen on white as on nearly black, so that the page can have both.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import to_hex

from scalebench_lib.words import OPTIMIZATIONS

_COLOURS = (
    *("#6e7681", "#c05c00", "#b0389b", "#d03a4a", "#1a78c2", "#0f8a8f", "#3c8a2e", "#8a7400"),
    *("#7a5cd6", "#a0603c", "#4f6fb5", "#c2407a"),
)
_MARKERS = "osD^vPX*<>dp"


def look(table: pd.DataFrame, optimization: str) -> tuple[str, str]:
    """Colour and marker of an optimization: for those that we know, the same everywhere."""
    unknown = sorted(set(table["optimization"]) - set(OPTIMIZATIONS))
    place = [*OPTIMIZATIONS, *unknown].index(optimization) % len(_COLOURS)
    return _COLOURS[place], _MARKERS[place]


def batch_colour(batch_size: int, dark: bool = False) -> str:
    """Away from the background with the logarithm of the batch size; 1024 is the furthest."""
    palette = sns.color_palette("viridis" if dark else "viridis_r", as_cmap=True)
    share = min(np.log2(batch_size) / 10, 1)
    return to_hex(palette(0.25 + 0.75 * share if dark else 0.2 + 0.8 * share))
