"""From a rate and a limit to deployments, on made-up sweeps; and their proof, on stand-ins."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from scalebench_lib.analysis.published import import_published
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.plan import load_report, report, runner, search
from scalebench_lib.plan.answer import Question
from scalebench_lib.plan.arrivals import arrival_times
from scalebench_lib.plan.decide import Context, PlanRequest
from scalebench_lib.plan.load import Deployment, LoadRun, read_load_runs, save_run
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Instance
from scalebench_lib.plan.runner import Limits
from scalebench_lib.plan.search import (
    LoadVerifier,
    Predictor,
    Target,
    baseline_name,
    read_planned_deployment,
)
from scalebench_lib.plan.simulate import Batching, Log
from scalebench_lib.record import Record, Software, Verification
from tests import factories
from tests.plan.test_decide import PUBLISHED
from tests.plan.test_load import run
from tests.standins import STAND_IN, instances


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 2 cores, batch 1, 4 and 8; a pass of one item takes about 30 ms."""
    records = factories.small_records((1, 4, 8))
    return factories.save_sweep(tmp_path_factory.mktemp("search"), records)


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch) -> None:
    """The stages of the search, with a tenth of the requests."""
    monkeypatch.setattr(search, "_STAGES", ((500, 10), (2_000, 5), (5_000, 5)))


def predictor(out: Path) -> Predictor:
    """What simulates for `out`."""
    return Predictor(Context.load(out, PlanRequest.of(slo_ms=1.0)))


def target(**asked: float) -> Target:
    """A question."""
    return Target.from_input({"slo_ms": 200.0, **asked})


def test_the_answer_is_the_shortest_tail_at_the_rate_that_was_asked_for(out: Path) -> None:
    """It is predicted to hold; the others follow, fat and thin among them."""
    found = predictor(out).search(target(rate=30.0))
    assert found[0].holds
    assert found[0].rate == 30.0
    assert all(found[0].reached_ms <= search._TIED * one.reached_ms for one in found)
    assert {"fat", "thin"} <= {baseline_name(one.deployment, 2) for one in found}
    assert all(one.deployment.plan.cores <= 2 for one in found)


def test_without_a_rate_it_is_the_most_that_holds(out: Path) -> None:
    """A little more than the highest rate does not hold; what is asked for the rate, does."""
    made = predictor(out)
    best = made.search(target())[0]
    assert best.holds
    times = arrival_times("poisson", 1, 5_000)
    over = made.simulate(best.deployment, times / (1.1 * best.rate))
    assert 1e3 * np.percentile(over.latency_s, 99) > 200
    assert made.search(target(rate=0.9 * best.rate))[0].holds


def test_a_rate_that_nothing_holds_is_answered_with_the_highest(out: Path) -> None:
    """And with what bounds it; a limit below any pass, with the fastest pass."""
    with pytest.raises(RequestError, match=r"nothing serves 5000 .* the highest is \d+.* busy"):
        predictor(out).search(target(rate=5000.0))
    with pytest.raises(RequestError, match=r"no rate has p99 within 2 ms on 2 cores: the fastest"):
        predictor(out).search(target(rate=10.0, slo_ms=2.0))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"rate": -1}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"percentile": 100}, "percentile"),
        ({"slo_ms": -1}, "slo_ms"),
        ({"max_seconds": 0}, "max_seconds"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        target(**asked)


def deployed(out: Path, threads: int = 1, count: int = 2, **batching: object) -> Deployment:
    """Instances of eager in the profile of `out`."""
    profile = predictor(out).context.profile.only("none")
    one = next(o for o in profile.instances if (o.threads, o.batch_size) == (threads, 8))
    asked = {"max_batch": 8, "sizes": (1, 4, 8), **batching}
    return Deployment(Plan.of([one] * count), Batching(**asked))


def test_service_times_are_the_samples_of_the_sweep(out: Path) -> None:
    """Of instances that nobody saw together, without a slow-down."""
    (one, _), slowdown = predictor(out).service(deployed(out))
    record = next(r for r in factories.small_records((8,)) if r.config.optimization == "none")
    point = next(point for point in record.points if point.threads == 1)
    assert slowdown == 0
    assert np.median(one.by_shape[8, 0]) == pytest.approx(point.median_ns / 1e9, rel=1e-3)


def test_what_was_seen_under_load_counts_from_then_on(tmp_path: Path) -> None:
    """For the same instances: of sizes seen, their times; of others in proportion."""
    factories.save_sweep(tmp_path, factories.small_records((1, 4, 8)))
    deployment, before = deployed(tmp_path), predictor(tmp_path)
    alone = {n: np.median(before.service(deployment)[0][0].by_shape[n, 0]) for n in (1, 4, 8)}
    batches = [(n % 2, 1, n * 1.0, n + 2 * alone[1]) for n in range(50)]
    seen = run(
        Log.of(np.arange(50.0), batches),
        deployment.batching,
        deployment=deployment,
        shared=dict(before.context.profile.shared),
    )
    save_run(seen, tmp_path)
    after = predictor(tmp_path).service(deployment)[0][0].by_shape
    assert {n: np.median(after[n, 0]) / alone[n] for n in alone} == pytest.approx(
        {1: 2, 4: 2, 8: 2}, rel=0.01
    )
    fat = deployed(tmp_path, threads=2, count=1)
    same = [p.service(fat)[0][0].by_shape for p in (before, predictor(tmp_path))]
    assert same[0] == same[1]
    other = seen.model_copy(update={"software": Software.here()})
    (tmp_path / "load.jsonl").unlink()
    save_run(other, tmp_path)
    assert predictor(tmp_path)._together == {}


def test_capacity_is_that_of_full_batches(out: Path) -> None:
    (one, _), _ = predictor(out).service(deployed(out))
    most = max(size / np.mean(times) for (size, _), times in one.by_shape.items())
    assert predictor(out).capacity(deployed(out)) == pytest.approx(2 * most)


def test_a_plan_is_saved_and_load_finds_it(out: Path) -> None:
    """With another batching if that is asked for."""
    made, asked = predictor(out), target(rate=30.0)
    best = made.search(asked)[0]
    decision = Question.of(rate=30.0, slo_ms=200.0).answer(made).decision
    path = load_report.save_plan_json(decision, best)
    found = json.loads(path.read_text())
    assert (found["rate"], found["percentile"]) == (30.0, 99.0)
    assert found["predicted_percentile_ms"] == best.reached_ms
    assert len(found["instances"]) == len(best.deployment.plan.instances)
    assert len(decision.placed) == len(best.deployment.plan.instances)
    assert read_planned_deployment(out, 0, None)[1] == best.deployment
    changed = read_planned_deployment(out, 6, 3.0)[1].batching
    assert (changed.max_batch, changed.max_wait_ms, changed.sizes) == (6, 3.0, (1, 4, 6))
    path.write_text('{"instances": []}')
    with pytest.raises(RequestError, match="has no plan for requests: make one first"):
        read_planned_deployment(out, 0, None)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `out`, with 16 and 128 tokens; of 64 tokens batch 1 alone was measured."""
    records = [*factories.small_records((1, 4, 8)), *factories.small_records((1,), seq_len=64)]
    records += factories.small_records((1, 4, 8), seq_len=128)
    return factories.save_sweep(tmp_path_factory.mktemp("mixed"), records)


def test_requests_of_several_lengths_are_planned_by_the_samples_of_each(mixed: Path) -> None:
    """Their rate lies between those of short and of long ones alone; `load` finds the mix again."""
    rates = {}
    for lengths in ("16:1", "16:70,128:30", "128:1"):
        question = Question.of(slo_ms=900.0, lengths=lengths)
        context = Context.load(mixed, question.request)
        rates[lengths] = Predictor(context).search(question.target)[0].rate
    assert rates["128:1"] < rates["16:70,128:30"] < rates["16:1"]
    question = Question.of(slo_ms=900.0, lengths="128:30,16:70")
    answer = question.answer(Predictor(Context.load(mixed, question.request)))
    assert answer.sentences[0].endswith("; tokens 16 (70%), 128 (30%)")
    answer.save()
    context, deployment = read_planned_deployment(mixed, 0, None)
    assert context.lengths == deployment.batching.lengths == ((16, 70.0), (128, 30.0))
    long = read_planned_deployment(mixed, 0, None, "128:1")[1]
    assert Predictor(context).capacity(long) < Predictor(context).capacity(deployment)


@pytest.mark.parametrize(
    ("lengths", "why"),
    [
        ("16", "tokens, each once with its share, such as 16:70,128:30, not '16'"),
        ("16:70,16:30", "each once"),
        ("16:0,128:1", "with its share"),
        ("16:nan", "with its share"),
        ("0:1", "with its share"),
        ("32:1", "no point was measured with 32: there is 16, 64, 128"),
    ],
)
def test_lengths_that_make_no_sense_or_were_not_measured_are_refused(
    mixed: Path, lengths: str, why: str
) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        Context.load(mixed, PlanRequest.of(slo_ms=900.0, lengths=lengths))
    assert len(str(caught.value).splitlines()) == 1


def test_lengths_are_of_requests_and_limit_the_batches_to_those_measured(mixed: Path) -> None:
    """Of 64 tokens batches of one alone were measured."""
    with pytest.raises(RequestError, match="lengths: are of requests, which have no batch_size"):
        Question.of(batch_size=8, lengths="16:1")
    with pytest.raises(RequestError, match="lengths: are of requests, which have no seq_len"):
        Question.of(slo_ms=9.0, seq_len=16, lengths="16:1")
    context = Context.load(mixed, PlanRequest.of(slo_ms=900.0, lengths="64:1,128:1"))
    found = Predictor(context).search(target(slo_ms=900.0))
    assert {one.deployment.batching.max_batch for one in found} == {1}
    large = Batching(max_batch=8, sizes=(1, 4, 8), lengths=context.lengths)
    with pytest.raises(RequestError, match=r"batches of 8 were not measured with .*, 1 thread"):
        Predictor(context).service(replace(found[0].deployment, batching=large))


def verifier(out: Path, monkeypatch, **asked: float) -> LoadVerifier:
    """A verifier on stand-ins that take 5 ms for everything, one at a time."""
    monkeypatch.setattr(runner, "_COMMAND", STAND_IN)
    config = factories.small_records((1,))[0].config
    machine = Machine.here().model_copy(update={"pinnable": False})
    running = runner.PlanRunner(config, machine, Limits())
    return LoadVerifier(predictor(out), running, target(**asked), lambda _: None)


def test_the_highest_rate_is_found_by_bisection(tmp_path: Path, monkeypatch) -> None:
    """Of a server that holds the limit up to 100 requests a second; every rate is kept."""
    factories.save_sweep(tmp_path, factories.small_records((1, 4, 8)))
    made = verifier(tmp_path, monkeypatch, max_seconds=0.01, percentile=50)

    def served(
        self: LoadVerifier, test: object, deployment: Deployment, times: np.ndarray, _: float
    ) -> LoadRun:
        rate = len(times) / times[-1]
        took = 0.1 if rate <= 100 else 0.3
        batches = [(0, 1, at, at + took) for at in times]
        seen = run(Log.of(times, batches), slo_ms=200.0, percentile=50.0, rate=rate)
        save_run(seen, tmp_path)
        return seen

    monkeypatch.setattr(LoadVerifier, "_run", served)
    runs = made.highest(deployed(tmp_path, max_batch=1, sizes=(1,)))
    held = max(one.rate for one in runs if one.holds)
    assert 90 < held <= 100
    assert min(one.rate for one in runs if not one.holds) <= 1.06 * held
    assert len(read_load_runs(tmp_path)) == len(runs) <= 8
    assert "requests/s, surely more than" in load_report.highest_rate_sentence(runs)
    failed = [one for one in runs if not one.holds]
    assert "no rate held" in load_report.highest_rate_sentence(failed)
    assert load_report.by_rate(made.predictor.curve(runs[0].deployment, target()), runs).png()
    assert instances() == []


@pytest.mark.slow
def test_verified_deployments_run_in_turn_and_the_best_measured_is_first(
    tmp_path: Path, monkeypatch
) -> None:
    """The best three, fat and thin; predicted is kept beside measured."""
    factories.save_sweep(tmp_path, factories.small_records((1, 4, 8)))
    made = verifier(tmp_path, monkeypatch, rate=40.0, max_seconds=1.0, percentile=50)
    found = made.predictor.search(made.target)
    runs = made.verify(found)
    names = {baseline_name(one.deployment, 2) for one in runs}
    assert {"fat", "thin"} <= names
    assert 3 <= len(runs) <= 5
    assert [one.reached_ms for one in runs] == sorted(one.reached_ms for one in runs)
    assert all(50.0 in one.predicted_ms for one in runs)
    assert [one.kind for one in read_load_runs(tmp_path)] == ["poisson"] * len(runs)
    best = next(one for one in found if one.deployment == runs[0].deployment)
    table = load_report.deployment_table(2, found, best, runs)
    assert table.row_count == len(found)
    assert sum(cell.plain.endswith("/s") for cell in table.columns[-2]._cells) == len(runs)
    told = "; ".join(load_report.answer_sentences(made.predictor, found, best, runs))
    assert re.search(r"measured: a p50 of .* ms, at .*/s; 200 ms are kept", told)
    said = "\n".join(load_report.sentences(runs[0]))
    assert "p50:" in said
    assert "p99.9 needs 6,636 requests" in said
    assert "goodput" in said
    assert load_report.over_time(runs[0]).png()
    assert instances() == []


def test_where_nothing_starts_it_says_why(tmp_path: Path, monkeypatch) -> None:
    factories.save_sweep(tmp_path, factories.small_records((1, 4, 8)))
    made = verifier(tmp_path, monkeypatch, rate=40.0)
    monkeypatch.setattr(runner, "_COMMAND", (STAND_IN[0], "-c", "exit('no luck')"))
    found = made.predictor.search(made.target)[:1]
    with pytest.raises(MeasurementError, match=r"nothing could be run: .*no luck"):
        made.verify(found)


def test_an_overloaded_run_is_said_to_be_so() -> None:
    """No percentile is given."""
    times = np.arange(3000) * 0.001
    batches = [(0, 1, n * 0.005, n * 0.005 + 0.005) for n in range(600)]
    said = "\n".join(load_report.sentences(run(Log.of(times, batches))))
    assert "overload: the queue grew all the time" in said
    assert "p50" not in said
    assert "2,400 requests failed, or were not answered" in said
    dead = run(Log.of(times, batches), failures=("an instance was killed",))
    assert "after an instance failed requests piled up" in "\n".join(load_report.sentences(dead))


def test_tails_of_passes_that_were_timed_several_at_once_are_said_to_be_longer(tmp_path) -> None:
    for passes, said in ((1, False), (6, True)):
        records = [_timed_together(record, passes) for record in factories.small_records((1,))]
        made = predictor(factories.save_sweep(tmp_path / str(passes), records))
        found = made.search(target(rate=10.0))
        told = load_report.answer_sentences(made, found, found[0], [])
        assert any("several at once" in line for line in told) == said


def _timed_together(record: Record, passes: int) -> Record:
    points = [one.model_copy(update={"passes_per_sample": passes}) for one in record.points]
    return record.model_copy(update={"points": tuple(points)})


def test_the_planner_of_a_narrower_request_is_kept_to(out: Path) -> None:
    """One core: no deployment takes two."""
    request = PlanRequest.of(slo_ms=200.0, cores=1)
    context = Context.load(out, request).narrowed(request)
    assert {one.plan.cores for one in Predictor(context).deployments()} == {1}
    assert replace(context, cores=2).cores == 2


def test_a_search_whose_time_is_up_ranks_what_it_has_seen(out: Path, monkeypatch) -> None:
    """One deployment, whose waits the later stages try, though it is neither fat nor thin."""
    made, seconds = predictor(out), iter([0.0, 0.0])
    monkeypatch.setattr(search, "baseline_name", lambda *_: "")
    monkeypatch.setattr(search.time, "monotonic", lambda: next(seconds, 1e9))
    found = made.search(target(rate=5.0, slo_ms=2000.0))
    assert len({one.deployment.plan for one in found}) == 1


def test_a_run_of_too_few_requests_for_its_percentile_is_ranked_and_says_so(out: Path) -> None:
    made = predictor(out)
    found = made.search(target(rate=30.0))[:1]
    log = Log.of(np.arange(20.0), [(0, 1, n, n + 0.005) for n in range(20)])
    short = run(log, deployment=found[0].deployment)
    assert short.percentiles.keys() == {50.0}
    assert "unknown: too few requests" in " ".join(
        load_report.answer_sentences(made, found, found[0], [short])
    )


def test_an_import_is_planned_from_its_means_and_that_is_said(tmp_path: Path) -> None:
    """It has no samples, and nobody saw its instances together."""
    csv = tmp_path / "published.csv"
    csv.write_text(PUBLISHED)
    import_published([csv], tmp_path / "out", None)
    made = predictor(tmp_path / "out")
    found = made.search(target(rate=5.0, slo_ms=1000.0))
    times, _ = made.service(found[0].deployment)
    assert all(len(set(values)) == 1 for values in times[0].by_shape.values())
    assert "an import has mean times alone" in " ".join(
        load_report.answer_sentences(made, found, found[0], [])
    )
    several = [one for one in found if len(one.deployment.plan.instances) > 1]
    assert any("assumed not to slow" in w for w in made.reservations(several[0].deployment))


def test_of_deployments_as_soon_the_one_of_the_highest_rate_is_best_and_stands_once(
    out: Path,
) -> None:
    """At a low rate batches never fill, whatever their limit."""
    made, asked = predictor(out), target(rate=2.0, slo_ms=500.0)
    found = made.search(asked)
    kinds = [(o.deployment.plan, o.deployment.batching.max_wait_ms) for o in found]
    assert len(set(kinds)) == len(kinds)
    best = found[0]
    assert len(best.alike) > 1
    assert best.title.endswith(": the same at this rate)")
    rates = [made.highest(_up_to(best.deployment, size), asked) for size in best.alike]
    assert made.highest(best.deployment, asked) > 0.9 * max(rates)


def _up_to(one: Deployment, size: int) -> Deployment:
    """The same instances with other batches."""
    sizes = tuple(n for n in (1, 4, 8) if n <= size)
    plan = Plan.of([replace(each, batch_size=size) for each in one.plan.instances])
    return Deployment(plan, one.batching.model_copy(update={"max_batch": size, "sizes": sizes}))


def told(made: Predictor, *runs: LoadRun, **asked: float) -> list[str]:
    """What is said of the best for a request."""
    found = made.search(target(**asked))
    best = next(o for o in found if not runs or o.deployment == runs[0].deployment)
    return list(load_report.answer_sentences(made, found, best, runs))


def test_the_load_tests_that_tell_the_times_of_the_best_are_counted(out: Path) -> None:
    """So are those that tell nothing of it: the answer may differ for want of them."""
    made = predictor(out)
    assert not any("load test" in line for line in told(made, rate=30.0))
    deployment = made.search(target(rate=30.0))[0].deployment
    log = Log.of(np.arange(50.0), [(0, 1, n, n + 0.005) for n in range(50)])
    seen = (run(log, deployment.batching, deployment=deployment),) * 2
    after = Predictor(replace(made.context, loads=seen))
    assert "its times are those of 2 load tests in this folder (load.jsonl)" in told(
        after, rate=30.0
    )
    elsewhere = Deployment(Plan.of([Instance(7, 1, 5.0, cores=7)]), deployment.batching)
    other = Predictor(replace(made.context, loads=(run(log, deployment=elsewhere),)))
    none = "its times are those of the sweep: none of 1 load test in this folder is of these"
    assert any(line.startswith(none) for line in told(other, rate=30.0))


def test_the_best_that_is_not_exact_has_its_error_and_the_best_that_is(tmp_path: Path) -> None:
    """The page does so as well."""
    records = [
        one.model_copy(update={"verification": _proof(db)})
        for one in factories.small_records((1, 4))
        for db in [120.0 if one.config.optimization == "none" else 25.0]
    ]
    said = told(predictor(factories.save_sweep(tmp_path, records)), rate=10.0)
    assert "TorchScript" in said[0]
    assert said[0].endswith("(predicted), error −25 dB")
    assert said[1].startswith("with less error: ")
    assert "eager" in said[1]
    assert said[1].endswith("error −120 dB")


def _proof(sqnr_db: float) -> Verification:
    return Verification(max_abs_error=0.0, items=4, sqnr_db=sqnr_db)


def test_where_no_run_kept_the_limit_that_comes_first_and_nothing_is_to_be_typed(
    out: Path, monkeypatch
) -> None:
    """The file says so too; what else computed meanwhile is said."""
    made = predictor(out)
    deployment = made.search(target(rate=30.0))[0].deployment
    log = Log.of(np.arange(700.0), [(0, 1, n, n + 0.4) for n in range(700)])
    late = run(log, deployment.batching, deployment=deployment, slo_ms=200.0, other_cpus=0.8)
    said = told(made, late, late, rate=30.0)
    assert said[0] == (
        "none of the 2 plans kept 200 ms when run: the nearest took 400.0 ms; ask again: what was "
        "measured counts now"
    )
    assert any("something else used 0.8 CPUs in the mean meanwhile" in line for line in said)
    monkeypatch.setattr(LoadVerifier, "verify", lambda *_: [late])
    monkeypatch.setattr(Context, "runner", lambda *_: None)
    question = Question.of(rate=30.0, slo_ms=200.0)
    answer = question.answer(made)
    assert any("YOUR_SERVER" in line for line in report.commands(answer.decision))
    verified = answer.verified(print)
    assert list(report.commands(verified.decision)) == [
        "Nothing to run: no plan kept to the limit."
    ]
    assert json.loads(verified.save().read_text())["limit_kept"] is False


def test_what_others_compute_is_seen_and_what_instances_compute_is_not(monkeypatch) -> None:
    """A CPU was busy for 0.8 of each second; a child, which has ended, was so for some of it."""
    machine, clock = factories.machine(cores=1, smt=False), iter([0.0, 10.0])
    busy = SimpleNamespace(user=1.0, system=0.0)
    monkeypatch.setattr(runner.psutil, "cpu_times", lambda **_: [busy, SimpleNamespace()])
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
    others, mine = runner.OthersCpu(machine), psutil.Process().cpu_times()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    own = sum(psutil.Process().cpu_times()[:4]) - sum(mine[:4])
    busy.user = 1.0 + 8.0 + own
    assert own > 0
    assert others.mean == pytest.approx(0.8, abs=0.05)
