"""The plan notebook runs headless on a sweep, and answers its questions."""

import json
import re
from dataclasses import replace
from math import nan
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.plan import figures, search
from scalebench_lib.plan.answer import Question
from scalebench_lib.plan.decide import Context, PlanRequest
from scalebench_lib.plan.explorer import BATCH, PlanExplorer, context_and_question
from scalebench_lib.plan.interference import PlanRuns
from scalebench_lib.plan.load import Deployment, LoadRun, save_run
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.search import Predictor
from scalebench_lib.plan.simulate import Batching, Log
from scalebench_lib.text import format_number
from tests import factories
from tests.notebooks import said
from tests.plan import test_load
from tests.plan.observed import observation

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "plan.ipynb"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick sweep of a made-up machine of 2 cores."""
    return factories.save_sweep(tmp_path_factory.mktemp("plan"), factories.small_records((1, 4, 8)))


@pytest.fixture
def loaded(sweep: Path) -> Context:
    """What there is to plan with."""
    return Context.load(sweep, PlanRequest())


def load_run(context: Context) -> LoadRun:
    """A load test of one instance: a request a second takes 40 ms, twice what was predicted."""
    one = next(o for o in context.profile.instances if (o.threads, o.batch_size) == (2, 1))
    times = np.arange(1.0, 101.0)
    batching = Batching(max_batch=1, sizes=(1,))
    return test_load.run(
        Log.of(times, [(0, 1, at, at + 0.04) for at in times]),
        batching,
        deployment=Deployment(Plan.of([one]), batching),
        shared=dict(context.profile.shared),
        percentile=50.0,
        predicted_ms={50.0: 20.0},
    )


def executed(sweep: Path, out: Path, **asked: object) -> tuple[list[str], str]:
    """The notebook's pictures, in words, and all that it says."""
    book = papermill.execute_notebook(
        NOTEBOOK, out, {"out": str(sweep), "price_per_hour": 1.53, **asked}, progress_bar=False
    )
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    alts = [o.metadata["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})]
    assert not any(output.output_type == "stream" for output in outputs)
    return alts, said(*book.cells)


def test_a_rate_and_a_tail_are_answered(sweep: Path, tmp_path: Path) -> None:
    """Where to run what, and how far that goes; a load test that was kept; what it costs."""
    save_run(load_run(Context.load(sweep, PlanRequest())), sweep)
    asked = {"rate": 10.0, "slo_ms": 300.0, "percentile": 95.0}
    narrow = {"cores": 1, "optimization": "script"}
    pictures, told = executed(sweep, tmp_path / "out.ipynb", **asked, **narrow)
    assert len(pictures) == 3
    assert " of 2 cores" in pictures[0]
    assert pictures[1:] == ["Latency by rate", "Predicted against measured"]
    for part in ("10.0 requests/s with a p95 of", "p95 is within 300 ms up to", "taskset -c"):
        assert part in told
    assert "within 10 % of the prediction: 0 of 1 run; at worst +100.0%" in told
    assert re.search(r"1.53 an hour, 20% left unused:\n  .* with script: 1 machine of .*/s", told)
    assert json.loads((sweep / "plan.json").read_text())["rate"] == 10.0
    (sweep / "load.jsonl").unlink()


def test_a_batch_is_split(sweep: Path, tmp_path: Path) -> None:
    """As the command does; that no plan was run yet is said."""
    pictures, told = executed(sweep, tmp_path / "out.ipynb", batch_size=8)
    assert len(pictures) == 2
    for part in ("serves batch 8", "soonest:", "nothing was run yet", "taskset", "1.53 an hour"):
        assert part in told


def test_controls_answer_and_say_why_not(loaded: Context) -> None:
    """Curve and cores follow; a message is in the place of an answer that there is not."""
    explorer = PlanExplorer(loaded, Question.of(rate=20.0, slo_ms=300.0))
    first = [bytes(image.value) for image in explorer.pictures]
    assert all(picture.startswith(b"\x89PNG") for picture in first)
    assert "20.0 requests/s with a p99 of" in explorer.message.value
    for name, wrong, why in (
        ("rate", 5000.0, r"rate: nothing serves 5000 requests/s .* the highest is"),
        ("slo_ms", 2.0, "no rate has p99 within 2 ms on 2 cores"),
        ("slo_ms", 0.0, "slo_ms: name a latency limit"),
        ("percentile", 100.0, "percentile: input should be less than"),
        ("percentile", 99.99, "percentile: p99.99 needs 66,3.. requests"),
    ):
        before, explorer.numbers[name].value = explorer.numbers[name].value, wrong
        assert re.search(why, explorer.answer)
        assert len(explorer.answer.splitlines()) == 1
        assert explorer.pictures[0].layout.display == "none"
        explorer.numbers[name].value = before
    assert [bytes(image.value) for image in explorer.pictures] == first
    explorer.numbers["percentile"].value = 50.0
    assert "with a p50 of" in explorer.answer
    explorer.cores.value = 1
    assert bytes(explorer.pictures[1].value) != first[1]
    explorer.question.value = BATCH
    assert "inferences/s" in explorer.answer
    assert explorer.numbers["rate"].layout.display == "none"
    explorer.numbers["batch_size"].value = 11
    assert "cannot be made" in explorer.message.value


def test_a_change_is_answered_by_simulating_it(loaded: Context, monkeypatch) -> None:
    """The rate and the limit asked for, not what was asked before; of batches nothing."""
    asked: list[float] = []
    simulate = Predictor.simulate

    def seen(self: Predictor, one: Deployment, arrivals: np.ndarray) -> Log:
        asked.append(len(arrivals) / arrivals[-1])
        return simulate(self, one, arrivals)

    monkeypatch.setattr(Predictor, "simulate", seen)
    explorer = PlanExplorer(loaded, Question.of(slo_ms=300.0))
    del asked[:]
    explorer.numbers["rate"].value = 12.5
    assert sum(rate == pytest.approx(12.5, rel=0.2) for rate in asked) > 10
    del asked[:]
    explorer.question.value = BATCH
    assert not asked


def test_command_and_explorer_agree(loaded: Context, monkeypatch) -> None:
    """On the highest rate, by as many fewer requests as an answer at once takes."""
    monkeypatch.setattr(search, "_STAGES", ((1_000, 10), (10_000, 2), (20_000, 1)))
    answers = [Question.of(slo_ms=300).answer(Predictor(loaded, quick=q)) for q in (False, True)]
    exact, quick = (re.search(r": ([\d.]+) requests/s", o.sentences[0])[1] for o in answers)
    assert float(quick) == pytest.approx(float(exact), rel=0.1)


def test_predictions_are_compared_with_what_was_measured(loaded: Context) -> None:
    """A plan whose latency was not predicted is left out."""
    plan, shared = loaded.fastest(8), loaded.profile.shared
    slow, unknown = replace(plan, instances=plan.instances[:1]), replace(plan, predicted_ms=nan)
    runs = [
        observation(one, share * plan.predicted_ms, shared)
        for one, share in ((plan, 1), (slow, 1.25), (unknown, 1))
    ]
    learned = PlanRuns(observations=tuple(runs))
    picture = figures.predictions(replace(loaded, plan_runs=learned))
    assert picture.sentence == "within 10 % of the prediction: 1 of 2 runs; at worst +25.0%"
    assert picture.png().startswith(b"\x89PNG")
    (axes,) = picture.axes
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        ticks = axis.get_major_locator()()
        assert sum(limits[0] <= tick <= limits[1] for tick in ticks) >= 3


def test_parameters_are_checked_and_a_limit_is_found_where_none_is_asked(sweep: Path) -> None:
    """Papermill only warns of an unknown one."""
    asked = {"out": str(sweep), "batch_size": 8, "rate": 0.0, "verify": False, "seq_len": 0}
    question = context_and_question(sweep, asked)[1]
    assert (question.request.batch_size, question.request.slo_ms) == (8, 0)
    context, question = context_and_question(sweep, {**asked, "batch_size": 0})
    fastest = min(one.latency_ms for one in context.profile.instances)
    assert question.target.slo_ms == pytest.approx(5 * fastest, rel=0.05)
    limit = f"no limit was named: {question.target.slo_ms:g} ms is assumed"
    assert question.answer(Predictor(context, quick=True)).sentences[-1].startswith(limit)
    for wrong, why in (
        ({"batchsize": 4}, "unknown parameter 'batchsize'"),
        ({"rate": 5.0}, "rate: asks for requests, batch_size for one batch"),
        ({"max_seconds": 0}, "max_seconds"),
    ):
        with pytest.raises(RequestError, match=why):
            context_and_question(sweep, {**asked, **wrong})


def test_the_source_has_one_cell_of_parameters() -> None:
    """Papermill finds it by its tag."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    tagged = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    named = ("out", "rate", "slo_ms", "percentile", "verify", "batch_size", "price_per_hour")
    assert all(f"{name} = " in tagged[0].source for name in named)


def test_no_point_lies_above_the_steps_and_no_label_on_them(loaded: Context) -> None:
    """Also where a run of a single instance was slower than it was profiled; the text agrees."""
    slower = [
        observation(Plan.of([one]), 1.5 * one.latency_ms, loaded.profile.shared)
        for one in loaded.profile.instances[::2]
    ]
    for runs in ((), tuple(slower)):
        context = replace(loaded, plan_runs=PlanRuns(observations=runs))
        picture = figures.frontier(context)
        (axes,) = picture.axes
        single, steps, *ends = axes.lines
        for latency, throughput in zip(*single.get_data(), strict=True):
            within = steps.get_ydata()[steps.get_xdata() <= latency]
            assert throughput <= max(within) * (1 + 1e-9)
        for end, line in zip(ends, picture.sentence.splitlines(), strict=True):
            assert end.get_label().split(", ")[0] in line
            assert f"{format_number(end.get_ydata()[0], 4)} inferences/s" in line
        assert not axes.texts
        assert axes.get_legend() is None  # it stands below
