"""What may be asked for, and what a wrong request is told."""

import re
from pathlib import Path

import pytest

from scalebench_lib import optimizations
from scalebench_lib.config import AXES, WITHIN, Config, Sweep, Trial, base_of, preset
from scalebench_lib.errors import RequestError
from scalebench_lib.model_names import task_of_class
from tests.factories import machine

SMALL = machine(cores=2, smt=False)


def test_a_config_has_a_readable_name_that_does_not_change() -> None:
    """Records are found by it, for years."""
    assert Config(batch_size=8, optimization="script").id == "bert-script-smt_off-bs8-44136f"


def test_what_the_name_leaves_out_is_in_its_hash() -> None:
    """Two configs never share a record."""
    assert Config(seq_len=128).id != Config().id
    assert Config(weights="pretrained").id != Config().id


@pytest.mark.parametrize("bad", [0, -1, 3.5, "abc", None, "1e3", float("nan")])
def test_a_batch_size_is_a_whole_number_of_at_least_one(bad: object) -> None:
    """One line, naming the field and the value."""
    with pytest.raises(RequestError, match=r"^batch_size: input should be ") as caught:
        Config.from_input({"batch_size": bad})
    assert "\n" not in str(caught.value)


def test_a_number_that_papermill_turned_into_text_is_taken() -> None:
    """papermill injects np.int64(8) as the string "8"."""
    assert Config.from_input({"batch_size": "8"}).batch_size == 8


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"model": "brt"}, "did you mean 'bert'?"),
        ({"optimization": "scirpt"}, "did you mean 'script'?"),
        ({"optimization": "qqq"}, "known: none, script"),
        ({"batchsize": 8}, "unknown parameter 'batchsize': did you mean 'batch_size'?"),
        ({"seq_len": 513}, "seq_len"),
        ({"placement": "random"}, "placement"),
    ],
)
def test_a_wrong_word_gets_the_nearest_right_one(values: dict, hint: str) -> None:
    """A typo costs a glance, not a search."""
    with pytest.raises(RequestError) as caught:
        Config.from_input(values)
    assert hint in str(caught.value)


def test_a_trial_survives_the_way_through_papermill() -> None:
    """Its parameters, checked again in the kernel, give the same trial."""
    config = Config(batch_size=8)
    trial = Trial(config=config, threads=(1, 2), max_seconds=3, number=4, round=2, block="0a1b2c3d")
    assert Trial.from_parameters(trial.parameters(), SMALL) == trial


def test_a_trial_refuses_unknown_parameters_and_threads() -> None:
    """papermill only warns about unknown names."""
    with pytest.raises(RequestError, match="unknown parameter 'treads': did you mean 'threads'"):
        Trial.from_parameters({"treads": 2}, SMALL)
    with pytest.raises(RequestError, match="threads: 3 is more than the 2 CPUs"):
        Trial.from_parameters({"threads": [1, 3]}, SMALL)
    with pytest.raises(RequestError, match="'auto', 'all' or whole numbers"):
        Trial.from_parameters({"threads": "many"}, SMALL)


def test_a_sweep_goes_up_by_batch_size_and_combines_all_axes() -> None:
    """Small batches first: they tell whether the large ones will fit."""
    sweep = Sweep(batch_sizes=(8, 1), smt="both", seq_lens=(16, 128))
    configs = [trial.config for trial in sweep.trials(machine())]
    assert len(set(configs)) == len(configs) == 2 * 2 * 2 * 2
    assert [config.batch_size for config in configs] == [1] * 8 + [8] * 8


def test_smt_is_measured_where_there_is_smt() -> None:
    """``auto`` asks the machine; asking for what it lacks is refused."""
    assert {trial.config.smt for trial in Sweep().trials(machine())} == {False, True}
    assert {trial.config.smt for trial in Sweep().trials(SMALL)} == {False}
    with pytest.raises(RequestError, match="smt: 'both' needs hyper-threading"):
        Sweep(smt="both").trials(SMALL)


def test_a_sweep_comes_back_from_its_file(tmp_path) -> None:
    """sweep.yaml can be used as a spec again."""
    sweep = Sweep(batch_sizes=(1, 2), threads=(1, 2), max_seconds=2.5)
    (tmp_path / "sweep.yaml").write_text(sweep.dump())
    assert Sweep.load(tmp_path / "sweep.yaml") == sweep


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("batch_sizse: [1]", "unknown parameter 'batch_sizse': did you mean 'batch_sizes'?"),
        ("batch_sizes: [0]", "batch_sizes: input should be greater than or equal to 1, not '0'"),
        ("just words", "it holds no parameters"),
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "it holds no parameters"),
        ("rounds: 1\nrounds: 9", "'rounds' stands there twice"),
        ("batch_sizes: 1:30", "input should be a valid integer, not '1:30'"),
        (f"model: {'a' * 300}", "unknown model"),
    ],
)
def test_a_wrong_spec_file_is_told_in_one_line(tmp_path, text: str, complaint: str) -> None:
    """With the file's name in it."""
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        Sweep.load(path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sweeps_of_one_folder_add_up() -> None:
    """Batch sizes and optimizations may be added to a sweep; the latest limits count."""
    first = Sweep(batch_sizes=(1, 4), optimizations=("none",), threads=(1,), max_seconds=5)
    second = Sweep(batch_sizes=(4, 8), optimizations=("script",), threads=(2,), max_seconds=7)
    both = first.merged(second)
    assert both.batch_sizes == (1, 4, 8)
    assert both.optimizations == ("none", "script")
    assert both.threads == (1, 2)
    assert both.max_seconds == 7
    assert Sweep(threads="auto").merged(second).threads == "auto"


@pytest.mark.parametrize("name", ["../x", "org/<script>", "/etc/../x y", "./a$b$"])
def test_a_model_from_elsewhere_has_a_safe_and_readable_name(name: str) -> None:
    """The last part of its folder, the whole of it in the hash."""
    config = Config(model=name)
    assert re.fullmatch(r"[\w.-]+", config.id)
    assert config.id != Config(model=f"other/{name}").id


@pytest.mark.parametrize("name", ["<script>", "../", "..", "a/\n", ""])
def test_a_model_that_cannot_be_named_is_refused(name: str) -> None:
    """Before anything is started."""
    with pytest.raises(RequestError, match=r"^model: "):
        Config.from_input({"model": name})


def test_a_folder_that_holds_no_model_is_refused(tmp_path, monkeypatch) -> None:
    """And one beside us is told from a name by its slash."""
    with pytest.raises(RequestError, match=r"is no folder with a config\.json"):
        Sweep(model=str(tmp_path)).trials(SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert Config(model="mine").model == "./mine"


def test_a_size_that_a_model_does_not_know_is_refused() -> None:
    """It would measure the same thing twice."""
    with pytest.raises(RequestError, match="seq_len: resnet50 takes images: leave it out"):
        Sweep(model="resnet50", seq_lens=(16, 128)).trials(SMALL)
    with pytest.raises(RequestError, match="image_size: gpt2 takes text"):
        Config.from_input({"model": "gpt2", "image_size": 64})
    assert "64 × 64 pixels" in str(Config(model="resnet50", image_size=64))


def test_a_block_is_named_by_eight_hex_digits() -> None:
    """Or not at all: a trial by itself has none."""
    assert Trial(config=Config(), threads=(1,)).block == ""
    with pytest.raises(RequestError, match="block"):
        Trial.from_parameters({"block": "../x"}, SMALL)


def test_the_seconds_of_a_point_are_shared_by_the_rounds_of_its_sweep() -> None:
    """Each trial has its part."""
    trials = Sweep(rounds=4, max_seconds=10.0).trials(SMALL)
    assert {trial.max_seconds for trial in trials} == {2.5}


def test_configs_of_a_group_differ_in_optimization_allocator_and_smt_alone() -> None:
    """All else makes groups."""
    within = [{"optimization": "bf16"}, {"allocator": "tcmalloc"}, {"smt": True}]
    between = [{"batch_size": 2}, {"seq_len": 128}, {"seed": 1}, {"placement": "interleave"}]
    assert {Config(**change).group for change in within} == {Config().group}
    assert Config().group not in {Config(**change).group for change in between}


def test_the_base_of_a_group_is_eager_with_the_default_allocator_and_without_smt() -> None:
    """Each of these, else the first word that the group has."""
    group = [
        Config(optimization=name, allocator=allocator, smt=smt)
        for name in ("bf16", "script", "none")
        for allocator in ("tcmalloc", "default")
        for smt in (True, False)
    ]
    assert base_of(group) == Config()
    assert base_of(group[:-4]) == Config(optimization="script")
    only_smt = [config for config in group if config.smt]
    assert base_of(only_smt) == Config(smt=True)


@pytest.mark.parametrize(
    ("written", "field", "meant"),
    [
        ("smt: off", "smt", "off"),
        ("smt: on", "smt", "on"),
        ("batch_sizes: 010", "batch_sizes", (10,)),
        ("batch_sizes: 8", "batch_sizes", (8,)),
        ("batch_sizes: 1,2", "batch_sizes", (1, 2)),
        ("threads: 2", "threads", (2,)),
        ("threads: 1,2", "threads", (1, 2)),
        ("optimizations: none", "optimizations", ("none",)),
    ],
)
def test_yaml_is_read_as_people_write_it(tmp_path: Path, written: str, field: str, meant) -> None:
    (tmp_path / "sweep.yaml").write_text(written)
    assert getattr(Sweep.load(tmp_path / "sweep.yaml"), field) == meant


def test_a_folder_is_the_same_model_however_it_is_written(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    written = ("mine", "mine/", "./mine", "./mine//")
    assert {Config(model=name).model for name in written} == {"./mine"}
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "deep").symlink_to(tmp_path / "mine")  # …/.. is tmp_path, not links
    (tmp_path / "links" / "mine").mkdir()
    assert Config(model="links/deep/../mine").model == "links/deep/../mine"


def test_a_task_is_part_of_the_name_and_the_title() -> None:
    """Records of before are of bodies, and keep their names."""
    body, head = Config(), Config(task="sequence-classification")
    assert body.id == Config(task="none").id == "bert-none-smt_off-bs1-44136f" != head.id
    assert str(head).startswith("BERT, sequence classification, batch 1 of 16 tokens")
    assert str(body).startswith("BERT, batch 1")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertForMaskedLM", "masked-lm"),
        ("BertModel", "none"),
        ("GPT2LMHeadModel", "causal-lm"),
        ("T5ForConditionalGeneration", "seq2seq-lm"),
        ("WhisperForConditionalGeneration", "speech-seq2seq"),
        ("Wav2Vec2ForCTC", "ctc"),
        ("T5EncoderModel", "text-encoding"),
        ("BertForMultipleChoice", ""),
    ],
)
def test_a_class_of_transformers_tells_its_task(name: str, task: str) -> None:
    """Its name ends with it, but for a few."""
    assert task_of_class(name) == task


def test_the_task_that_nobody_names_is_the_models_own(tmp_path) -> None:
    """Of a folder, what its config says; of our names, bodies, and gpt2 with its head."""
    model = f"{tmp_path}/mine"
    (tmp_path / "mine").mkdir()
    config = tmp_path / "mine" / "config.json"
    config.write_text('{"architectures": ["BertForMaskedLM"]}', encoding="utf-8")
    for name, task in {model: "masked-lm", "bert": "none", "gpt2": "causal-lm"}.items():
        sweep = Sweep(model=name)
        assert {trial.config.task for trial in sweep.trials(SMALL)} == {task}
        assert Trial.from_parameters({"model": name, "threads": [1]}, SMALL).config.task == task
        assert {t.config.task for t in Sweep(model=name, task="none").trials(SMALL)} == {"none"}
    config.write_text('{"architectures": ["BertForMultipleChoice"]}', encoding="utf-8")
    with pytest.raises(RequestError, match="task: 'BertForMultipleChoice' has none of"):
        Sweep(model=model).trials(SMALL)
    config.write_text("{}", encoding="utf-8")
    assert Sweep(model=model).trials(SMALL)[0].config.task == "none"


def test_an_unknown_task_gets_the_nearest() -> None:
    with pytest.raises(RequestError, match="unknown task 'masked-ml': did you mean 'masked-lm'"):
        Sweep.from_input({"task": "masked-ml"})


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"model": "bert"}, "phase: bert generates no tokens: leave it out"),
        ({"model": "resnet50"}, "phase: resnet50 generates no tokens: leave it out"),
        ({"model": "gpt2", "seq_len": 1024}, "seq_len: gpt2 takes 1024 tokens at most"),
        ({"model": "gpt2", "phase": "decoding"}, "phase: "),
    ],
)
def test_a_phase_is_of_decoders_with_room_for_a_token(asked: dict, reason: str) -> None:
    with pytest.raises(RequestError, match=f"^{reason}"):
        Config.from_input({"phase": "decode", **asked})


def test_a_phase_is_told_and_makes_groups() -> None:
    """A forward pass, the default, is not told: ids of records stay; other phases have a head."""
    assert Config(model="gpt2", phase="decode").task == "causal-lm"
    with pytest.raises(RequestError, match="phase: tokens are generated by the task causal-lm"):
        Config.from_input({"model": "gpt2", "phase": "decode", "task": "none"})
    forward, decode = (Config(model="gpt2", phase=phase) for phase in ("forward", "decode"))
    assert str(decode) == "GPT-2, causal LM, batch 1 of 1 token after 16, decode, eager, SMT off"
    assert "forward" not in str(forward)
    assert forward.id == Config(model="gpt2").id != decode.id
    assert forward.group != decode.group
    assert Config(model="gpt2", phase="prefill", seq_len=1024).positions == 1024


@pytest.mark.parametrize(
    ("flags", "installed", "taken"),
    [
        ("avx2", (), ["none", "script"]),
        ("avx512_bf16", (), ["none", "script", "bf16"]),
        ("avx2", ("openvino",), ["none", "script", "openvino"]),
        ("amx_bf16", ("openvino", "nncf"), ["bf16", "openvino", "openvino-bf16", "openvino-int8"]),
    ],
)
def test_a_quick_sweep_takes_the_engines_that_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, installed: tuple, taken: list
) -> None:
    """And types of numbers that the CPU lists."""
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags} sse\n")
    monkeypatch.setattr(optimizations, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(optimizations, "is_package_installed", lambda package: package in installed)
    assert preset("quick")["optimizations"][-len(taken) :] == taken
    assert preset("page") == {}


def test_lines_of_one_figure_differ_in_optimization_and_smt_alone() -> None:
    """Figures name and draw only these side by side; another axis has to split figures."""
    assert {name for name in WITHIN if not AXES[name].splits} == {"optimization", "smt"}
