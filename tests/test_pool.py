"""Visits of a point together: which probes say how fast the machine was at a sample."""

import numpy as np
import pytest

from scalebench_lib.pool import MOMENT_NS, MOMENT_PASSES, _probes
from scalebench_lib.record import Point

MS = 1_000_000


def point(pass_ns: int, probes: tuple[int, ...], apart_ns: int) -> Point:
    """Samples of one length, so far apart, each between two probes of one length."""
    count = len(probes)
    return Point(
        threads=1,
        cores=1,
        cpus=(0,),
        pinned=True,
        samples_ns=(pass_ns,) * count,
        started_ns=tuple(range(0, count * apart_ns, apart_ns)),
        probe_before_ns=probes,
        probe_after_ns=probes,
        warmup_ns=(),
        stopped_by="max_seconds",
    )


def test_probes_of_one_moment_are_averaged() -> None:
    """Those of the next are not."""
    far = 2 * MOMENT_NS
    near = point(MS, (4 * MS, 9 * MS), MOMENT_NS // 2)
    found = _probes([near, point(MS, (4 * MS, 9 * MS), far)])
    assert found == pytest.approx([6 * MS, 6 * MS, 4 * MS, 9 * MS])


def test_beside_long_passes_a_moment_is_some_passes_long() -> None:
    """Two probes of milliseconds say little of seconds between them."""
    probes = (4 * MS,) * (2 * MOMENT_PASSES) + (8 * MS,)
    found = _probes([point(1000 * MS, probes, 1000 * MS)])
    assert found[0] == pytest.approx(4 * MS)
    assert found[-1] == pytest.approx(4 * MS * 2 ** (1 / (MOMENT_PASSES + 1)))


def test_points_do_not_lend_each_other_their_probes() -> None:
    """Each visit of a point was at a time of its own."""
    slow, fast = (point(1000 * MS, (ns * MS,) * 3, 1000 * MS) for ns in (8, 4))
    assert _probes([slow, fast]) == pytest.approx(np.repeat([8 * MS, 4 * MS], 3))
