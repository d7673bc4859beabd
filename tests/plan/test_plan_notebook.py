"""The plan notebook runs headless on the example sweep, and tells its story."""

from dataclasses import replace
from pathlib import Path

import nbformat
import papermill
import pytest

from scalebench_lib.plan.decide import Ground, Request
from scalebench_lib.plan.explorer import _MOST, PlanExplorer
from scalebench_lib.plan.figures import speedups
from tests import factories

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "plan.ipynb"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick sweep of a made-up machine of 2 cores."""
    return factories.save_sweep(tmp_path_factory.mktemp("plan"), factories.small_records((1, 4, 8)))


def test_it_shows_the_plan_and_its_pictures(sweep: Path, tmp_path: Path) -> None:
    """Cores, gains and the frontier; nothing was run yet, and it says so."""
    out = tmp_path / "out.ipynb"
    book = papermill.execute_notebook(
        NOTEBOOK, out, {"out": str(sweep), "batch_size": 8}, progress_bar=False
    )
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    pictures = [
        o["metadata"]["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 3
    assert "batch 8 on" in pictures[0]
    said = "".join(o["text"] for o in outputs if o["output_type"] == "stream")
    assert "no plan was run yet" in said
    assert "taskset -c" in said
    assert (sweep / "plan.json").exists()


def test_controls_answer_and_say_why_not(sweep: Path) -> None:
    """The picture follows; what cannot be had is told in its place."""
    explorer = PlanExplorer(Ground.load(sweep, Request()), batch_size=8)
    first = bytes(explorer.picture.value)
    assert first.startswith(b"\x89PNG")
    assert "serves batch 8" in explorer.message.value
    explorer.cores.value = 1
    assert bytes(explorer.picture.value) != first
    explorer.batch_size.value = 16
    assert "cannot be made" in explorer.message.value
    explorer.cores.value = 2
    explorer.question.value = _MOST
    assert "inferences/s" in explorer.message.value


def test_where_nothing_ran_on_all_cores_there_is_no_gain_to_show(sweep: Path) -> None:
    """And the picture says so by being empty."""
    ground = Ground.load(sweep, Request())
    single = [option for option in ground.profile.options if option.threads == 1]
    drawing, gains = speedups(replace(ground, profile=replace(ground.profile, options=single)))
    assert gains == {}
    assert drawing.png().startswith(b"\x89PNG")


def test_the_source_has_one_cell_of_parameters() -> None:
    """Papermill finds it by its tag."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    tagged = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(name in tagged[0].source for name in ("out", "batch_size", "slo_ms", "verify"))
