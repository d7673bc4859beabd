"""Decisions on made-up sweeps; what cannot be had is answered with the nearest that can."""

import json
from dataclasses import replace
from math import log, nan
from pathlib import Path

import pytest
from rich.console import Console

from scalebench_lib.analysis.published import import_published
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.plan import figures, report
from scalebench_lib.plan.decide import Context, Decision, PlanRequest, verify_by_running
from scalebench_lib.plan.interference import PlanRuns
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Instance
from scalebench_lib.plan.runner import Limits, PlanTiming
from scalebench_lib.plan.simulate import Batching
from scalebench_lib.record import Turn, model_files_digest
from scalebench_lib.stats import Interval, VarianceEstimate
from scalebench_lib.text import format_number
from tests import factories
from tests.plan.observed import observation

PUBLISHED = """\
benchmark,topology,pinning,allocator,instance_id,interop_threads,intraop_threads,batch_size,\
latency(min),latency(avg),latency(max)
bert_manual_none,sequential,numactl,default,1,1,1,4,79,80,81
bert_manual_none,sequential,numactl,default,1,1,2,8,119,120,121
"""


FOUR = factories.machine(cores=4, smt=False)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 4 cores with SMT, batch 1 to 16."""
    machine = factories.machine(cores=4)
    records = [factories.measured(c, machine) for c in factories.configs(machine, (1, 2, 4, 8, 16))]
    return factories.save_sweep(tmp_path_factory.mktemp("plan"), records)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A sweep of 2 cores without SMT, batch 1, 4 and 8, of the optimizations none and script."""
    return factories.save_sweep(tmp_path, factories.small_records((1, 4, 8)))


def ask(out: Path, **asked: object) -> Decision:
    """What `Context.decide` answers."""
    request = PlanRequest.of(**asked)
    return Context.load(out, request).decide(request)


def was_run(out: Path, *runs: tuple[Plan, float], **changed: object) -> None:
    """Leave in `out` that plans were run, and took so many ms."""
    shared = ask(out, batch_size=8).context.profile.shared
    seen = [observation(plan, ms, shared, **changed) for plan, ms in runs]
    PlanRuns.load(out).with_runs(seen).save(out)


def turn(cycle: int, ms: float) -> Turn:
    """A turn of one batch."""
    return Turn(cycle=cycle, start_ns=0, samples_ns=(int(ms * 1e6),))


def test_the_plan_is_never_worse_than_the_baselines(sweep: Path) -> None:
    """Its CPUs are the machine's, and no core serves two instances."""
    for size in (1, 3, 8, 16, 32):
        decision = ask(sweep, batch_size=size)
        for other in (decision.fat, decision.thin):
            assert not other or decision.best.latency_ms <= other.latency_ms
        cores = [{cpu % 4 for cpu in one.cpus} for one in decision.placed]
        assert sum(map(len, cores)) == len(set().union(*cores)) == decision.best.cores <= 4
        assert [len(one.cpus) for one in decision.placed] == [
            one.threads for one in decision.best.instances
        ]
        assert decision.best.batch_size == size


def test_a_point_with_smt_on_costs_whole_cores(sweep: Path) -> None:
    """Its sibling idled when it was measured: half a core was never known to be enough."""
    instances = ask(sweep, batch_size=8).context.profile.instances
    assert {one.threads: one.cores for one in instances if one.smt} == {
        1: 1,
        2: 1,
        3: 2,
        4: 2,
        5: 3,
        6: 3,
        7: 4,
        8: 4,
    }
    assert all(one.cores == one.threads for one in instances if not one.smt)


def test_on_unequal_cores_an_instance_with_smt_on_fits_wherever_it_is_put(tmp_path) -> None:
    """As where a process may use three of the four CPUs of two cores."""
    two = factories.machine(cores=2)
    cores = (two.cores[0], two.cores[1].model_copy(update={"cpus": (1,)}))
    uneven = two.model_copy(update={"cores": cores})
    records = [factories.measured(c, uneven) for c in factories.configs(uneven, (1, 2))]
    factories.save_sweep(tmp_path, records)
    for size in (1, 2, 4):
        decision = ask(tmp_path, batch_size=size)
        cpus = [cpu for one in decision.placed for cpu in one.cpus]
        assert len(cpus) == len(set(cpus)) == sum(one.threads for one in decision.best.instances)


def test_with_smt_on_all_instances_together_keep_to_a_quota(tmp_path: Path) -> None:
    """Two threads on a core are two CPUs of a quota: more would be throttled."""
    for quota in (2.5, 6.0):
        limited = factories.machine(cores=4).model_copy(update={"quota": quota})
        records = [factories.measured(c, limited) for c in factories.configs(limited, (1, 2))]
        out = factories.save_sweep(tmp_path / str(quota), records)
        for size in (1, 2, 4):
            assert sum(one.threads for one in ask(out, batch_size=size).best.instances) <= quota


def test_a_plan_that_needs_slower_cores_than_were_measured_says_so(tmp_path: Path) -> None:
    """Of 2 performance and 2 efficiency cores, as many are fast enough for two of one thread."""
    slow = [core.model_copy(update={"efficient": core.cpus[0] > 1}) for core in FOUR.cores]
    hybrid = FOUR.model_copy(update={"cores": tuple(slow)})
    records = [factories.measured(c, hybrid) for c in factories.configs(hybrid, (1, 2, 4))]
    out = factories.save_sweep(tmp_path, records)
    for cores, said in ((2, False), (4, True)):
        decision = ask(out, batch_size=8, cores=cores)
        assert len(decision.best.instances) > 1
        assert any("efficiency cores" in line for line in report.sentences(decision)) == said


def test_fewer_cores_and_one_optimization_are_kept_to(sweep: Path) -> None:
    plan = ask(sweep, batch_size=8, cores=2, optimization="none").best
    assert plan.cores <= 2
    assert plan.optimizations == {"none"}


def test_plan_json_says_what_to_run(sweep: Path) -> None:
    """Its keys are those that programs count on."""
    decision = ask(sweep, batch_size=8)
    found = json.loads(report.save_plan_json(decision).read_text())
    assert sum(one["batch_size"] for one in found["instances"]) == found["batch_size"] == 8
    assert all(len(one["cpus"]) == one["threads"] for one in found["instances"])
    assert found["measured_ms"] is None
    assert found["predicted_ms"] <= found["fat_ms"]
    assert found["speedup_over_thin"]["low"] < found["speedup_over_thin"]["value"]
    assert (found["model"], found["seq_len"]) == ("bert", 16)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({}, "slo_ms: name a latency limit"),
        ({"batch_size": "0"}, "batch_size: input should be greater than or equal to 1, not '0'"),
        ({"slo_ms": -1}, "slo_ms"),
        ({"batch_size": 1, "core": 2}, "unknown parameter 'core'"),
        ({"batch_size": 10_000}, "the nearest is"),
        ({"batch_size": 1, "cores": 5}, "more than the 4 cores of .* use at most 4"),
        ({"batch_size": 1, "optimization": "scirpt"}, "did you mean 'script'"),
        ({"batch_size": 1, "model": "gpt"}, "no point was measured with 'gpt': there is bert"),
        ({"slo_ms": 0.1}, "nothing answers within 0.1 ms .* the fastest is batch 1 in"),
        ({"slo_ms": 50, "batch_size": 64}, "within 50 ms the largest is batch"),
    ],
)
def test_what_cannot_be_had_gets_one_line(sweep: Path, asked: dict, answer: str) -> None:
    """The line says what can be had."""
    with pytest.raises(RequestError, match=answer) as caught:
        ask(sweep, **asked)
    assert len(str(caught.value).splitlines()) == 1


def test_what_the_sweep_has_several_of_is_chosen(tmp_path: Path) -> None:
    """Items of two sizes are never mixed in one plan."""
    sizes = [factories.small_records((1, 4), seq_len=tokens) for tokens in (16, 128)]
    out = factories.save_sweep(tmp_path, [record for records in sizes for record in records])
    with pytest.raises(RequestError, match="more than one seq_len: choose one of 16, 128"):
        ask(out, batch_size=4)
    short, long = (ask(out, batch_size=4, seq_len=n).best for n in (16, "128"))
    assert short.latency_ms < long.latency_ms


def test_a_limit_that_a_run_did_not_keep_is_told_and_kept_next_time(small: Path) -> None:
    """What was measured counts more than what was predicted."""
    first = ask(small, slo_ms=200)
    was_run(small, (first.best, 210.0))
    again = ask(small, slo_ms=200)
    assert again.best != first.best
    assert again.best.latency_ms <= 200
    assert all(
        plan.latency_ms > 209
        for plan in again.context.frontier()
        if plan.instances == first.best.instances
    )
    timings = {first.best: PlanTiming(first.best), first.fat: PlanTiming(first.fat)}
    measured = replace(first.best, measured_ms=Interval(1476.0, VarianceEstimate(0.0)))
    late = replace(first, best=measured, timings=timings, limit_kept=False)
    missed = "none of the 2 plans kept 200 ms when run: the nearest took 1,476 ms; ask again"
    assert missed in next(report.sentences(late))
    assert report.as_json(late)["limit_kept"] is False
    assert report.as_json(first)["limit_kept"] is None


def test_what_was_measured_slower_is_not_recommended_again(small: Path) -> None:
    first = ask(small, batch_size=8)
    was_run(small, (first.best, 500.0), (first.fat, first.fat.predicted_ms))
    again = ask(small, batch_size=8)
    assert again.best != first.best
    assert again.best.latency_ms < 500


def test_a_verification_is_not_undone_by_what_was_only_predicted(small: Path) -> None:
    """All plans took longer than predicted: so would have those that were not run."""
    first = ask(small, batch_size=8)
    was_run(small, *((plan, 1.5 * plan.predicted_ms) for plan in first.plans))
    again = ask(small, batch_size=8)
    assert again.best.measured_ms
    assert (again.best, again.fat) == (first.best, first.fat)


def test_a_plan_that_was_run_is_a_candidate_ever_after(small: Path) -> None:
    """Though its instances were not profiled: the table has no batch of 2."""
    even = Plan.of([Instance(1, 2, nan, cores=1, optimization="script")] * 2)
    assert not ask(small, batch_size=8).context.planner.reachable(3)
    was_run(small, (even, 1.0))
    answer = ask(small, batch_size=4)
    assert answer.best == even
    assert "2 × (1 thread, batch 2) serves batch 4 in 1.000 ms (measured before)" in next(
        report.sentences(answer)
    )
    assert answer.thin == answer.best
    assert report.as_json(answer)["measured_ms"] == 1.0
    assert ask(small, slo_ms=2).best == even
    assert ask(small, batch_size=4, cores=1).best != even
    assert ask(small, batch_size=4, optimization="none").best != even


def test_what_was_run_with_other_software_does_not_count(small: Path) -> None:
    first = ask(small, batch_size=8).best
    other = factories.SOFTWARE.model_copy(update={"versions": {"torch": "2.7.0"}})
    was_run(small, (first, 500.0), software=other)
    assert ask(small, batch_size=8).best == first
    assert ask(small, batch_size=8).best.measured_ms is None


def test_a_split_that_is_faster_than_fat_is_not_said_to_gain_nothing(small: Path) -> None:
    """Also where it is the thin plan that was best."""
    decision = ask(small, batch_size=8, optimization="none")
    was_run(small, (decision.fat, 248.0), (decision.thin, 100.0))
    said = "; ".join(report.sentences(ask(small, batch_size=8, optimization="none")))
    assert (
        "2.48× (2.41 … 2.55) as fast as one instance on all cores (fat), 1 × (2 threads, batch 8)"
        in said
    )
    assert "it is one instance a core (thin)" in said
    assert "gains nothing" not in said
    was_run(small, (decision.fat, 90.0))
    said = "; ".join(report.sentences(ask(small, batch_size=8, optimization="none")))
    assert "it is one instance on all cores (fat): splitting gains nothing here" in said


def test_one_copy_per_core_fills_the_cores_evenly_or_there_is_none(sweep: Path) -> None:
    """Of 4 cores; batches of 5 and 6 were not profiled, and 3 items leave a core without one."""
    assert [str(one) for one in ask(sweep, batch_size=6).thin.instances] == [
        *2 * ["(1 thread, batch 2)"],
        *2 * ["(1 thread, batch 1)"],
    ]
    assert all(one.threads == 1 and not one.smt for one in ask(sweep, batch_size=16).thin.instances)
    reasons = {22: "batch 5 or 6 was not measured on one thread; verify runs it all the same"}
    reasons[3] = "there is none: 3 items for 4 cores"
    for size, reason in reasons.items():
        decision = ask(sweep, batch_size=size)
        assert decision.thin is None
        assert f"against one instance a core (thin): {reason}" in report.sentences(decision)


@pytest.mark.parametrize(("variance", "verdict"), [(0.02, False), (0.003, True)])
def test_a_noisy_machine_gets_no_verdict(small: Path, variance: float, verdict: bool) -> None:
    """Half-widths of 31 % and 12 % of the ratio."""
    decision = ask(small, batch_size=8, optimization="none")
    best, fat = (
        replace(plan, measured_ms=Interval(ms, VarianceEstimate(variance / 2, df=50)))
        for plan, ms in ((decision.thin, 50.0), (decision.fat, 100.0))
    )
    said = "; ".join(report.sentences(replace(decision, best=best, fat=fat)))
    assert ("as fast as one instance on all cores" in said) == verdict
    assert (
        "no verdict (the machine is too noisy now: again with more max_seconds" in said
    ) != verdict


def test_where_no_slow_down_was_measured_none_is_assumed_and_that_is_said(
    small: Path, tmp_path: Path
) -> None:
    assumed = "instances are assumed not to slow each other down"
    assert f"{assumed}: verify measures it" in report.sentences(ask(small, batch_size=8))
    two = Plan.of([Instance(1, 4, 100.0, cores=1)] * 2)
    was_run(small, (two, 120.0))
    assert not any(assumed in line for line in report.sentences(ask(small, batch_size=8)))
    csv, out = tmp_path / "published.csv", tmp_path / "imported"
    csv.write_text(PUBLISHED)
    import_published([csv], out, "there")
    assert f"{assumed}: an import has no runs" in report.sentences(ask(out, batch_size=8))


def test_published_runs_of_several_copies_tell_how_they_slow_each_other(tmp_path: Path) -> None:
    """Four copies of ⟨1, 4⟩ at once: 80 ms alone, 100 ms with three others, on four cores."""
    copies = "".join(
        f"bert_manual_none,sequential,numactl,default,{n},1,1,4,90,100,110\n" for n in (1, 2, 3, 4)
    )
    (tmp_path / "one.csv").write_text(PUBLISHED)
    (tmp_path / "four.csv").write_text(f"{PUBLISHED.splitlines()[0]}\n{copies}")
    out = tmp_path / "imported"
    import_published([tmp_path / "one.csv", tmp_path / "four.csv"], out, "there")
    decision = ask(out, batch_size=16)
    assert decision.context.slowdown == pytest.approx(log(100 / 80) / 3)
    assert (decision.best, decision.best.latency_ms) == (decision.thin, 100)
    said = list(report.sentences(decision))
    assert "serves batch 16 in 100.0 ms (published)" in said[0]
    assert not any("assumed not to slow" in line for line in said)
    assert any("CPU numbers are made up" in line for line in report.commands(decision))
    found = json.loads(report.save_plan_json(decision).read_text(), parse_constant=pytest.fail)
    assert (found["measured_ms"], found["measured_ms_high"]) == (100, None)
    picture = figures.predictions(decision.context)
    assert picture.sentence.endswith("at worst +25.0%")
    assert ask(out, batch_size=8).best.predicted_ms == pytest.approx(80 * (100 / 80) ** (1 / 3))


def test_requests_cost_least_with_the_optimization_that_serves_most(small: Path) -> None:
    """Each at its own best plan for what was asked; one that cannot do it is left out."""
    decision = ask(small, batch_size=8)
    title, *lines = report.cost_lines(decision, 1.53)
    assert "1.53 an hour, 20% left unused" in title
    assert [line.split(" with ")[1].split(":")[0] for line in lines] == ["script", "none"]
    best = ask(small, batch_size=8, optimization="script").best
    usable = 0.8 * best.throughput * best.latency_ms / best.interval_ms.high
    assert lines[0].startswith(f"  {format_number(1.53 / 3600 / usable * 1e6)} with")
    assert lines[0].endswith(f": 1 machine of {format_number(best.throughput)}/s at most")
    within = ask(small, slo_ms=ask(small, batch_size=1).best.latency_ms)
    assert len(list(report.cost_lines(within, 1.53))) == 2


def test_speed_ups_of_a_verified_decision_are_what_was_seen(small: Path) -> None:
    """Plans that never met are compared by their latencies; one that failed not at all."""
    decision = ask(small, batch_size=8)
    times = {decision.best: 1.0, decision.fat: 2.0}
    timings = {
        plan: PlanTiming(
            plan, [turn(cycle + 10 * first, ms + 0.01 * cycle) for cycle in range(1, 7)]
        )
        for first, (plan, ms) in enumerate(times.items())
    }
    best, fat = (timings[plan].measured for plan in times)
    ratio = replace(decision, timings=timings).speedup(best, fat)
    assert ratio.how == "not measured together"
    assert ratio.value == pytest.approx(2.035 / 1.035)
    assert ratio.low < ratio.value < ratio.high
    failed = PlanTiming(decision.fat, reason="no luck").measured
    late = replace(decision, fat=failed, timings={**timings, failed: timings[failed]})
    assert late.speedup(best, failed) is None
    busy = replace(decision, timings=timings, other_cpus=0.8)
    assert any("something else used 0.8 CPUs" in line for line in report.sentences(busy))
    assert "against one instance on all cores (fat): it failed: no luck" in report.sentences(late)


def test_square_brackets_stand_in_a_table_as_they_are(small: Path, capsys) -> None:
    """They are no markup: here those of a reason."""
    decision = ask(small, batch_size=8)
    failed = PlanTiming(decision.fat, reason="[bold] luck").measured
    timed = PlanTiming(decision.best, [turn(cycle, 1.0) for cycle in range(1, 7)])
    timings = {(ran := timed.measured): timed, failed: PlanTiming(failed, reason="[bold] luck")}
    Console(markup=False, width=200).print(
        report.plan_table(replace(decision, best=ran, fat=failed, timings=timings))
    )
    assert "failed: [bold] luck" in capsys.readouterr().out


def test_instances_of_an_engine_are_given_its_setting_in_code(small: Path) -> None:
    """With its value for each number of threads; of requests how many are collected."""
    mixed = [Instance(2, 4, 1.0, 2, optimization="openvino-int8"), Instance(1, 4, 1.0, 1)]
    plan = Plan.of([*mixed, Instance(1, 4, 1.0, 1, optimization="onnxruntime")])
    batching = Batching(max_batch=4, max_wait_ms=2.0, sizes=(1, 4))
    decision = replace(ask(small, batch_size=8), best=plan, batching=batching)
    assert list(report.server_settings(decision)) == [
        "Let each collect up to 4 requests into a batch, waiting at most 2 ms for more.",
        "Set session_options.intra_op_num_threads = 1 in those of 1 thread",
        'Give compile_model config={"INFERENCE_NUM_THREADS": 2} in those of 2 threads',
    ]
    single = replace(decision, batching=Batching(max_batch=1, sizes=(1,)))
    assert next(report.server_settings(single)) == "Let each take one request at a time."


def test_a_sweep_of_another_machine_is_not_verified_here(sweep: Path) -> None:
    """Its CPUs are not ours."""
    decision = ask(sweep, batch_size=8)
    with pytest.raises(RequestError, match="differs from this machine"):
        verify_by_running(decision, Limits())


def test_a_model_that_was_edited_since_is_not_verified(tmp_path: Path, monkeypatch) -> None:
    """Its latencies are those of the one before."""
    (tmp_path / "config.json").write_text("{}")
    records = factories.small_records((1, 4), model=str(tmp_path))
    known = {"model_files": model_files_digest(records[0].config)}
    out = tmp_path / "out"
    factories.save_sweep(out, [record.model_copy(update=known) for record in records])
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: records[0].machine))
    context = ask(out, batch_size=4).context
    assert context.runner(Limits(), print)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 1}')
    with pytest.raises(RequestError, match="or of its weights, have changed since this sweep"):
        context.runner(Limits(), print)
