"""Decisions on made-up sweeps; what cannot be had is answered with the nearest that can."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.plan import report
from scalebench_lib.plan.decide import Request, decide, verify
from scalebench_lib.plan.interference import Interference, observation, shape
from scalebench_lib.plan.runner import Limits
from tests import factories
from tests.plan.test_interference import took


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 4 cores with SMT, batch 1 to 16."""
    machine = factories.machine(cores=4)
    records = [factories.measured(c, machine) for c in factories.configs(machine, (1, 2, 4, 8, 16))]
    return factories.save_sweep(tmp_path_factory.mktemp("plan"), records)


def test_the_plan_is_never_worse_than_the_baselines(sweep: Path) -> None:
    """And its CPUs are the machine's, each used once."""
    for size in (1, 3, 8, 16, 32):
        decision = decide(sweep, Request.of(batch_size=size))
        for name in ("fat", "thin"):
            other = decision.named(name)
            assert not other or decision.best.latency_ms <= other.latency_ms
        cpus = [cpu for one in decision.placed for cpu in one.cpus]
        assert len(cpus) == len(set(cpus))
        assert set(cpus) <= set(range(8))
        assert decision.best.plan.batch_size == size


def test_fewer_cores_and_one_optimization_are_kept_to(sweep: Path) -> None:
    """As asked."""
    plan = decide(sweep, Request.of(batch_size=8, threads=2, optimization="none")).best.plan
    assert plan.cores <= 2
    assert plan.optimization == "none"


def test_plan_json_says_what_to_run(sweep: Path) -> None:
    """In the words that programs count on."""
    decision = decide(sweep, Request.of(batch_size=8))
    found = json.loads(report.save(decision).read_text())
    assert sum(one["batch_size"] for one in found["instances"]) == found["batch_size"] == 8
    assert all(len(one["cpus"]) == one["threads"] for one in found["instances"])
    assert found["measured_ms"] is None
    assert found["predicted_ms"] <= found["fat_ms"]
    assert found["speedup_over_thin"]["low"] < found["speedup_over_thin"]["value"]


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({}, "name a batch size, or a latency limit"),
        ({"batch_size": 0}, "batch_size: must be a whole number of at least 1, not 0"),
        ({"slo_ms": -1}, "slo_ms"),
        ({"batch_size": 10_000}, "the nearest is"),
        ({"batch_size": 1, "threads": 5}, "more than the 4 cores of .* use at most 4"),
        ({"batch_size": 1, "optimization": "scirpt"}, "did you mean 'script'"),
        ({"batch_size": 1, "model": "gpt"}, "no point was measured with 'gpt': there is bert"),
        ({"slo_ms": 0.1}, "nothing answers within 0.1 ms .* the fastest is batch 1 in"),
        ({"slo_ms": 50, "batch_size": 128}, "within 50 ms the largest is batch"),
    ],
)
def test_what_cannot_be_had_gets_one_line(sweep: Path, asked: dict, answer: str) -> None:
    """With what can."""
    with pytest.raises(RequestError, match=answer) as told:
        decide(sweep, Request.of(**asked))
    assert len(str(told.value).splitlines()) == 1


def test_what_the_sweep_has_several_of_is_chosen(tmp_path: Path) -> None:
    """Items of two sizes are never mixed in one plan."""
    sizes = [factories.small_records((1, 4), seq_len=tokens) for tokens in (16, 128)]
    out = factories.save_sweep(tmp_path, [record for records in sizes for record in records])
    with pytest.raises(RequestError, match="more than one seq_len: choose one of 16, 128"):
        decide(out, Request.of(batch_size=4))
    short, long = (decide(out, Request.of(batch_size=4, seq_len=n)).best for n in (16, 128))
    assert short.latency_ms < long.latency_ms


def test_a_limit_that_a_run_did_not_keep_is_told_and_kept_next_time(tmp_path: Path) -> None:
    """What was measured counts more than what was predicted."""
    out = factories.save_sweep(tmp_path, factories.small_records((1, 4, 8)))
    first = decide(out, Request.of(slo_ms=200))
    slow = observation(first.ground.profile, first.best.plan, factories.START, took(210.0))
    Interference(observations=(slow,)).save(out)
    again = decide(out, Request.of(slo_ms=200))
    assert again.best.plan != first.best.plan
    assert again.best.latency_ms <= 200
    assert shape(first.best.plan.instances) not in {
        shape(plan.instances) for plan in again.ground.frontier() if plan.predicted_ms < 209
    }
    slower = replace(first.best.plan, predicted_ms=210.0)
    late = replace(first, best=replace(first.best, plan=slower))
    assert any("over the limit of 200 ms" in line for line in report.sentences(late))


def test_a_sweep_of_another_machine_is_not_verified_here(sweep: Path) -> None:
    """Its CPUs are not ours."""
    decision = decide(sweep, Request.of(batch_size=8))
    with pytest.raises(RequestError, match="differs from this machine"):
        verify(decision, Limits())
