"""The plan notebook runs headless on a sweep, and answers its questions."""

from dataclasses import replace
from math import nan
from pathlib import Path

import nbformat
import papermill
import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.plan import figures
from scalebench_lib.plan.decide import Context, Request
from scalebench_lib.plan.explorer import MOST, PlanExplorer, from_notebook
from scalebench_lib.plan.interference import Interference
from scalebench_lib.plan.planner import Plan
from scalebench_lib.text import format_number
from tests import factories
from tests.plan.observed import observation

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "plan.ipynb"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick sweep of a made-up machine of 2 cores."""
    return factories.save_sweep(tmp_path_factory.mktemp("plan"), factories.small_records((1, 4, 8)))


@pytest.fixture
def loaded(sweep: Path) -> Context:
    """What there is to plan with."""
    return Context.load(sweep, Request())


def test_it_shows_the_plan_and_its_pictures(sweep: Path, tmp_path: Path) -> None:
    """Each of cores, gains and the frontier has a sentence; that no plan was run yet is said."""
    out = tmp_path / "out.ipynb"
    book = papermill.execute_notebook(
        NOTEBOOK,
        out,
        {"out": str(sweep), "batch_size": 8, "rate": 900.0, "price_per_hour": 1.53},
        progress_bar=False,
    )
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    pictures = [
        o["metadata"]["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 3
    assert "batch 8 on" in pictures[0]
    said = "".join(o["text"] for o in outputs if o["output_type"] == "stream")
    for part in ("serves batch 8", "splitting gains", "soonest:", "no plan was run yet", "taskset"):
        assert part in said
    for part in ("Cost per million requests, 1.53 an hour", "at 900 requests/s:", " machines"):
        assert part in said
    assert (sweep / "plan.json").exists()


def test_controls_answer_and_say_why_not(loaded: Context) -> None:
    """The picture follows; a message is in the place of an answer that there is not."""
    explorer = PlanExplorer(loaded, batch_size=8)
    first = bytes(explorer.picture.value)
    assert first.startswith(b"\x89PNG")
    assert "serves batch 8" in explorer.message.value
    explorer.cores.value = 1
    assert bytes(explorer.picture.value) != first
    explorer.batch_size.value = 16
    assert "cannot be made" in explorer.message.value
    explorer.cores.value = 2
    explorer.question.value = MOST
    assert "inferences/s" in explorer.message.value
    assert explorer.limit.layout.display == "flex"
    assert explorer.batch_size.layout.display == "none"


def test_where_nothing_ran_on_all_cores_there_is_no_gain_to_show(loaded: Context) -> None:
    single = tuple(one for one in loaded.profile.instances if one.threads == 1)
    picture = figures.gains(replace(loaded, profile=replace(loaded.profile, instances=single)))
    assert "there is no fat to compare with" in picture.sentence
    assert picture.png().startswith(b"\x89PNG")


def test_predictions_are_compared_with_what_was_measured(loaded: Context) -> None:
    """A plan whose latency was not predicted is left out."""
    plan, shared = loaded.fastest(8), loaded.profile.shared
    slow, unknown = replace(plan, instances=plan.instances[:1]), replace(plan, predicted_ms=nan)
    runs = [
        observation(one, share * plan.predicted_ms, shared)
        for one, share in ((plan, 1), (slow, 1.25), (unknown, 1))
    ]
    learned = Interference(observations=tuple(runs))
    picture = figures.predictions(replace(loaded, interference=learned))
    assert picture.sentence == "1 of 2 plans were within 10 % of their prediction; at worst +25.0%"
    assert picture.png().startswith(b"\x89PNG")


def test_an_unknown_parameter_is_refused(sweep: Path) -> None:
    """Papermill only warns of one."""
    asked = {"out": str(sweep), "batch_size": 8, "verify": False, "seq_len": 0}
    assert from_notebook(sweep, asked)[1].batch_size == 8
    with pytest.raises(RequestError, match="unknown parameter 'batchsize'"):
        from_notebook(sweep, {**asked, "batchsize": 4})


def test_the_source_has_one_cell_of_parameters() -> None:
    """Papermill finds it by its tag."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    tagged = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(name in tagged[0].source for name in ("out", "batch_size", "slo_ms", "verify"))


def test_no_point_lies_above_the_steps_and_no_label_on_them(loaded: Context) -> None:
    """Also where a run of a single instance was slower than it was profiled; the text agrees."""
    slower = [
        observation(Plan.of([one]), 1.5 * one.latency_ms, loaded.profile.shared)
        for one in loaded.profile.instances[::2]
    ]
    for runs in ((), tuple(slower)):
        context = replace(loaded, interference=Interference(observations=runs))
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
