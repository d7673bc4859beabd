"""Comparisons of simulated sweeps, without folders."""

from pathlib import Path
from typing import Any

import pytest

from scalebench_lib.analysis.compare import Comparison, compare
from scalebench_lib.record import Record
from scalebench_lib.results import Results
from tests import simulated


def sweep(seed: int, slower: simulated.Slower = 1.0, **options: Any) -> list[Record]:
    """The records of a simulated sweep of four rounds, whose passes are far out now and then."""
    kind = simulated.far_out if seed % 4 > 1 else simulated.steady
    return simulated.sweep(kind, seed, **{"rounds": 4, **options}, slower=slower).records


def compared(before: list[Record], after: list[Record], how=compare, **options: Any) -> Comparison:
    """Compare two lists of records, as if they lay in folders."""
    sides = {"before": Results(before), "after": Results(after)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Results, "load", lambda out, any_machine=False: sides[str(out)])
        return how(Path("before"), Path("after"), **options)
