"""The machine's reference speed: kept with a sweep, shared by sweeps side by side."""

import pytest

from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError
from scalebench_lib.pool import pool
from scalebench_lib.record import Record
from scalebench_lib.reference import FILE, Reference, reference_for, require_one_machine
from scalebench_lib.results import load_results
from tests.madeup import machine, measured, save_sweep

SMALL = machine(cores=2, smt=False)


def probed(probe_ns: int, visit: int = 1, on=SMALL) -> Record:
    """A record whose probes all took `probe_ns`."""
    found = measured(Config(batch_size=4), on)
    beside = {
        name: (probe_ns,) * len(found.points[0].samples_ns)
        for name in ("probe_before_ns", "probe_after_ns")
    }
    points = tuple(point.model_copy(update=beside) for point in found.points)
    return found.model_copy(update={"points": points, "probe_version": 1, "visit": visit})


def test_it_is_the_fast_end_of_the_probes() -> None:
    """By thread count."""
    assert Reference.of([probed(5_000_000)]).probe_ns == {"1": 5e6, "2": 5e6}
    both = Reference.of([probed(5_000_000), probed(9_000_000, visit=2)])
    assert both.probe_ns["1"] == 5e6


def test_placements_have_references_of_their_own() -> None:
    """Other CPUs, other probe times."""
    assert Reference.key(Config(), 2) == "2"
    assert Reference.key(Config(smt=True), 2) == "2 smt"
    assert Reference.key(Config(placement="interleave"), 2) == "2 interleave"


def test_a_later_sweep_beside_takes_the_earlier_one(tmp_path) -> None:
    """So that their headlines can be compared."""
    (tmp_path / "first").mkdir()
    Reference.of([probed(5_000_000)]).save(tmp_path / "first")
    found = reference_for(tmp_path / "second", [probed(9_000_000)])
    assert found.probe_ns["1"] == 5e6


@pytest.mark.parametrize("other", [machine(cores=4, smt=False), machine(cores=2, smt=True)])
def test_another_machine_does_not(tmp_path, other) -> None:
    """Its speed says nothing of this one's."""
    (tmp_path / "first").mkdir()
    Reference.of([probed(5_000_000, on=other)]).save(tmp_path / "first")
    assert reference_for(tmp_path / "second", [probed(9_000_000)]).probe_ns["1"] == 9e6


def test_a_sweep_keeps_to_its_own(tmp_path) -> None:
    """Whatever faster probes come later."""
    Reference.of([probed(5_000_000)]).save(tmp_path)
    assert reference_for(tmp_path, [probed(3_000_000)]).probe_ns["1"] == 5e6


def test_a_damaged_reference_is_set_aside(tmp_path, caplog) -> None:
    """And said; the records give a new one."""
    (tmp_path / FILE).write_text("{")
    assert reference_for(tmp_path, [probed(5_000_000)]).probe_ns["1"] == 5e6
    assert f"{FILE} is damaged" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [f"{FILE}.invalid"]


def test_records_of_two_machines_are_refused(tmp_path) -> None:
    """Naming what differs, unless they are asked for."""
    records = [probed(5_000_000), probed(5_000_000, visit=2, on=machine(cores=4, smt=False))]
    with pytest.raises(RequestError, match=r"several machines: .* differ in cores"):
        require_one_machine(records)
    save_sweep(tmp_path, records)
    with pytest.raises(RequestError, match="several machines"):
        load_results(tmp_path)
    assert set(load_results(tmp_path, any_machine=True)["machine"]) == {
        "madeup-9000-2c",
        "madeup-9000-4c",
    }


def test_slow_visits_are_brought_to_the_reference() -> None:
    """A visit whose probes took 30 % longer counts as the faster visit that it would have been."""
    quick, slow = probed(5_000_000), probed(6_500_000, visit=2)
    pooled = pool([quick, slow], Reference.of([quick]))
    for (_, threads), point in pooled.items():
        alone = pool([quick])[(quick.config_id, threads)]
        assert len(point.visits) == 2
        assert point.headline.value < alone.headline.value
