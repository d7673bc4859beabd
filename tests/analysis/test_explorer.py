"""The explorer: its picture follows its controls, and it never answers with a traceback."""

import os
from base64 import b64decode
from pathlib import Path

import pandas as pd
import pytest

from scalebench_lib.analysis.explorer import Explorer, show_view
from scalebench_lib.errors import RequestError
from scalebench_lib.notebook import WIDGET, find_sweep, sweeps
from scalebench_lib.results import Results
from tests import factories


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder of two sweeps: `smt` of 4 cores with SMT, and `plain` of 2 cores without."""
    on = factories.machine(cores=4, smt=True)
    records = [factories.measured(config, on) for config in factories.configs(on, [1, 8, 64])]
    factories.save_sweep(tmp_path / "smt", records)
    factories.save_sweep(tmp_path / "plain", factories.small_records([1, 4]))
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.fixture
def explorer(outputs: Path) -> Explorer:
    """The explorer, opened on the sweep with SMT."""
    return Explorer(outputs / "smt", outputs)


def shown(explorer: Explorer) -> set[str]:
    """The names of the controls that can be seen: ``some …`` of the lists."""
    named = {name: value for name, value in vars(explorer).items() if hasattr(value, "layout")}
    named |= explorer.filters | explorer.choices
    named |= {f"some {name}": control for name, control in explorer.some.items()}
    seen = [c for c in explorer.controls if c.layout.display != "none"]
    return {name for name, control in named.items() if any(control is c for c in seen)}


def control(explorer: Explorer, name: str):
    """A control by the name of what it chooses."""
    if name.startswith("some "):
        return explorer.some[name.removeprefix("some ")]
    return explorer.choices.get(name) or getattr(explorer, name)


def test_it_opens_on_the_given_sweep_with_a_picture(explorer: Explorer) -> None:
    """All lines are there before anything is touched, and a sentence says what is seen."""
    assert explorer.sweep.label == "smt"
    assert bytes(explorer.picture.value).startswith(b"\x89PNG")
    assert explorer.view.value == "eager"
    assert explorer.choices["optimization"].value == "script"
    assert explorer.some["batch_size"].value == (1, 8, 64)
    assert "Largest speed-up" in explorer.message.value


@pytest.mark.parametrize(
    ("view", "name", "value"),
    [
        ("optimization", "metric", "throughput"),
        ("optimization", "optimization", "none"),
        ("optimization", "smt", True),
        ("optimization", "scale", "linear"),
        ("optimization", "some threads", (2, 4)),
        ("optimization", "view", "batch"),
        ("batch", "metric", "throughput"),
        ("batch", "batch_size", 64),
        ("batch", "scale", "log"),
        ("sizes", "metric", "throughput"),
        ("eager", "threads", 2),
        ("scaling", "some threads", (1, 2)),
        ("scaling", "optimization", "none"),
        ("heat", "metric", "throughput"),
        ("samples", "batch_size", 8),
        ("samples", "scale", "log"),
    ],
)
def test_each_choice_changes_the_picture(
    explorer: Explorer, view: str, name: str, value: object
) -> None:
    """No control is for show."""
    explorer.view.value = view
    before = explorer.picture.value
    control(explorer, name).value = value
    assert explorer.picture.value != before


@pytest.mark.parametrize(
    ("view", "name", "left"),
    [
        ("optimization", "batch_size", (1, 64)),
        ("batch", "optimization", ("script",)),
        ("batch", "smt", (False,)),
    ],
)
def test_each_list_takes_lines_away_and_brings_them_back(
    explorer: Explorer, view: str, name: str, left: tuple[object, ...]
) -> None:
    """Chosen again, the picture is what it was."""
    explorer.view.value = view
    before, every = explorer.picture.value, explorer.some[name].value
    explorer.some[name].value = left
    assert explorer.picture.value != before
    explorer.some[name].value = every
    assert explorer.picture.value == before


def test_another_sweep_brings_its_own_choices(explorer: Explorer) -> None:
    """The other machine's batch sizes, and no SMT to choose."""
    before = explorer.picture.value
    explorer.sweep.label = "plain"
    assert explorer.picture.value != before
    assert explorer.some["batch_size"].value == (1, 4)
    assert not {"smt", "some smt"} & shown(explorer)


def test_only_the_controls_of_the_view_are_shown(explorer: Explorer) -> None:
    """What does nothing here is not there."""
    general = {"sweep", "beside", "view", "metric", "some threads", "scale"}
    explorer.view.value = "optimization"
    assert shown(explorer) == {*general, "optimization", "smt", "some batch_size"}
    explorer.view.value = "batch"
    assert shown(explorer) == {*general, "batch_size", "some optimization", "some smt"}
    explorer.view.value = "heat"
    assert "scale" not in shown(explorer)
    explorer.view.value = "peak" if "peak" in dict(explorer.view.options) else "sizes"
    assert {"threads", "some threads"} & shown(explorer) == {"threads"}


def test_a_setting_is_chosen_where_a_sweep_has_several(outputs: Path) -> None:
    """16 and 128 tokens are never drawn in one figure."""
    records = [*factories.small_records([1]), *factories.small_records([1], seq_len=128)]
    explorer = Explorer(factories.save_sweep(outputs / "lengths", records), outputs)
    explorer.view.value = "optimization"
    assert explorer.filters["seq_len"].layout.display == "flex"
    assert explorer.filters["model"].layout.display == "none"
    before = explorer.picture.value
    explorer.filters["seq_len"].value = 128
    assert explorer.picture.value != before


def test_allocators_lie_beside_each_other_until_one_is_chosen(outputs: Path) -> None:
    """Each as an optimization of its own, all compared with eager on the system's."""
    records = [*factories.small_records([1]), *factories.small_records([1], allocator="jemalloc")]
    explorer = Explorer(factories.save_sweep(outputs / "allocators", records), outputs)
    names = ["eager", "TorchScript", "eager, jemalloc", "TorchScript, jemalloc"]
    assert [name for name, _ in explorer.some["optimization"].options] == names
    before = explorer.picture.value
    explorer.filters["allocator"].value = "jemalloc"
    assert [name for name, _ in explorer.some["optimization"].options] == names[:2]
    assert explorer.picture.value != before


def test_an_empty_choice_is_a_message(explorer: Explorer) -> None:
    """Nothing chosen: it says what to do, and recovers."""
    explorer.some["batch_size"].value = ()
    assert explorer.pictures.layout.display == "none"
    assert "choose at least one" in explorer.message.value
    explorer.some["batch_size"].value = (8,)
    assert explorer.pictures.layout.display == ""
    assert "batch 8" in explorer.message.value


def test_what_was_left_out_and_is_hidden_does_not_empty_the_picture(explorer: Explorer) -> None:
    """Without SMT its list is hidden: what was left out before must not count."""
    explorer.view.value = "batch"
    explorer.some["smt"].value = (True,)
    explorer.sweep.label = "plain"
    assert explorer.pictures.layout.display == ""


def test_a_config_that_failed_is_a_message(outputs: Path) -> None:
    """The reason, as text and not as HTML, instead of a traceback."""
    on = factories.machine(cores=2, smt=False)
    gone = [factories.missing(c, on, "failed", "<b>no memory") for c in factories.configs(on, [1])]
    explorer = Explorer(factories.save_sweep(outputs / "gone", gone), outputs)
    assert "failed, &lt;b&gt;no memory" in explorer.message.value
    assert explorer.pictures.layout.display == "none"


def test_a_damaged_sweep_is_a_message(explorer: Explorer, outputs: Path) -> None:
    """Nothing of it can be read; going back to a good one works."""
    for path in (outputs / "plain" / "records").iterdir():
        path.write_text("{")
    explorer.sweep.label = "plain"
    assert "holds no records" in explorer.message.value
    assert explorer.save_picture.disabled
    explorer.sweep.label = "smt"
    assert "Largest speed-up" in explorer.message.value


def test_sweeps_are_folders_with_records_newest_first(outputs: Path) -> None:
    """An empty folder is none."""
    os.utime(outputs / "smt" / "records", (1e9, 1e9))
    os.utime(outputs / "plain" / "records", (2e9, 2e9))
    assert [out.name for out in sweeps(outputs)] == ["plain", "smt"]
    assert find_sweep("", outputs).name == "plain"
    assert find_sweep("elsewhere", outputs) == Path("elsewhere")
    assert find_sweep("smt", outputs) == outputs / "smt"


def test_trials_by_hand_are_not_what_is_opened(outputs: Path) -> None:
    """However new they are: the newest sweep is; they can still be chosen."""
    by_hand = factories.save_sweep(outputs / "by-hand", factories.small_records([1]))
    (by_hand / "sweep.yaml").unlink()
    os.utime(by_hand / "records", (3e9, 3e9))
    assert sweeps(outputs)[0] == by_hand
    assert find_sweep("", outputs) != by_hand


def test_without_any_sweep_it_says_how_to_get_one(tmp_path: Path) -> None:
    """The first thing that a newcomer may do is open this notebook."""
    with pytest.raises(RequestError, match="measure one with"):
        find_sweep("", tmp_path)


def test_in_jupyterlab_it_is_widgets_with_a_picture_for_when_they_are_dead(
    explorer: Explorer,
) -> None:
    """A saved notebook that is opened elsewhere shows the picture."""
    data, _ = explorer._repr_mimebundle_()
    assert WIDGET in data
    assert b64decode(data["image/png"]) == explorer.picture.value


def test_sweeps_are_drawn_side_by_side_on_one_axis(explorer: Explorer) -> None:
    """A box for each other sweep; heights can be compared, and the words say which is which."""
    explorer.view.value = "optimization"
    (other,) = (path for _, path in explorer.beside.options)
    explorer.beside.value = (other,)
    assert len(explorer.pictures.children) == 2
    assert [one.name for one in explorer._shown] == ["smt", "plain"]
    assert "smt: Lowest" in explorer.message.value
    assert "plain: Lowest" in explorer.message.value
    explorer.beside.value = ()
    assert len(explorer.pictures.children) == 1


def test_picture_and_data_are_saved_in_the_sweeps_folder(explorer: Explorer, outputs: Path) -> None:
    """What is seen, and its numbers; a second time beside the first."""
    explorer.save_picture.click()
    explorer.save_picture.click()
    explorer.save_data.click()
    saved = sorted((outputs / "smt" / "explored").iterdir())
    assert [path.suffix for path in saved] == [".png", ".csv", ".png"]
    assert saved[0].read_bytes() == explorer.picture.value
    data = pd.read_csv(saved[1])
    assert set(data["batch_size"]) == {1, 8, 64}
    assert data["speedup"].notna().all()
    assert saved[1].name in explorer.saved.value


def test_a_figure_is_shown_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the first choice that there is, or of what is asked for."""
    records = [*factories.small_records([1]), *factories.small_records([4], seq_len=128)]
    results = Results(records)
    show_view("batch", results)
    assert "with batch 1, TorchScript" in capsys.readouterr().out
    show_view("samples", results, seq_len=128, optimization="none")
    assert "16 passes, 0 of them outliers." in capsys.readouterr().out
    show_view("batch", results, batch_size=2)
    assert "nothing has batch_size 2: there is 1." in capsys.readouterr().out
