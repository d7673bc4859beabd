"""The command: what it prints, and its exit codes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scalebench_lib import cli, doctor, optimizations
from scalebench_lib.config import Sweep
from scalebench_lib.machine import Core, Machine
from scalebench_lib.measure import noise
from scalebench_lib.notebook import PROJECT
from scalebench_lib.record import Software, load_records
from scalebench_lib.sweep.locks import lock_folder, write_status
from tests import simulated
from tests.factories import machine, missing, save_sweep, small_records
from tests.waiting import wait_until

MACHINE = Machine.here()
QUICK = ("--model", "bert-tiny", "--max-seconds", "0.3", "--threads", "1", "--rounds", "1")


def command(*arguments: object) -> list[str]:
    """The command line of ``scalebench``, with this Python."""
    return [sys.executable, "-m", "scalebench_lib.cli", *map(str, arguments)]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            ["--batch-sizes", "0"],
            "--batch-sizes: input should be greater than or equal to 1, not '0'",
        ),
        (["--batch-sizes", "-1"], "input should be greater than or equal to 1, not '-1'"),
        (["--batch-sizes", "3.5"], "input should be a valid integer, not '3.5'"),
        (["--batch-sizes", "abc"], "input should be a valid integer, not 'abc'"),
        (["--batch-sizes", "1,,2"], "input should be a valid integer, not ''"),
        (["--model", "brt"], "did you mean 'bert'?"),
        (["--optimizations", "none,scirpt"], "did you mean 'script'?"),
        (["--threads", "100000"], "100000 is more than the"),
        (["--max-seconds", "soon"], "--max-seconds: input should be a valid number, not 'soon'"),
        (["--target-ci", "nan"], "--target-ci: "),
        (["--preset", "quik"], "did you mean 'quick'?"),
        (["--rounds", "0"], "--rounds: input should be greater than or equal to 1"),
        (["--time-budget", "soon"], "--time-budget: must be like 90s, 10m or 2h, not 'soon'"),
        (["--trial-timeout", "0"], "--trial-timeout: must be like 90s, 10m or 2h, not '0'"),
        (["--if-busy", "hope"], "Invalid value for '--if-busy': 'hope' is not one of"),
        (["--batch-sizes", "999999999"], "--batch-sizes: "),
        (["--kernels", "hot"], "'hot' is not one of 'warm', 'fresh'"),
        (["--spec", "no-such.yaml"], "cannot read no-such.yaml"),
        (["--weights", "a\nb"], "weights: holds characters that cannot be printed"),
        (["--nonsense"], "--nonsense"),
        (["--seq-lens", "600"], "--seq-lens: bert takes 512 tokens at most"),
        (["--image-sizes", "64"], "--image-sizes: bert takes text: leave it out"),
        (["--phases", "decode"], "--phases: bert generates no tokens: leave it out"),
        ([*QUICK, "--seq-lens", "1"], "--seq-lens: input should be greater than or equal to 2"),
        ([*QUICK, "--weights", "pretrained"], "weights: bert-tiny has no published ones"),
    ],
)
def test_a_wrong_request_gets_one_line_and_starts_nothing(
    scalebench, tmp_path, options, complaint
) -> None:
    """Exit code 2, no folder made."""
    out = tmp_path / "sweep"
    code, printed, err = scalebench("sweep", out, *options)
    assert code == 2
    assert complaint in err
    assert len(err.splitlines()) == 1, err
    assert printed == ""
    assert not out.exists()


@pytest.mark.usefixtures("any_model")
def test_an_option_works_by_its_former_name(scalebench, tmp_path: Path) -> None:
    """``--seq-len`` is still ``--seq-lens``; the help lists the new name alone."""
    former = ("--seq-len", "8", "--visit-timeout", "5m")
    code, printed, _ = scalebench("sweep", tmp_path / "sweep", "--dry-run", *former, *QUICK)
    assert code == 0
    assert "batch 1 of 8 tokens" in printed
    assert "--visit-timeout" not in scalebench("sweep", "--help")[1]
    _, _, err = scalebench("plan", tmp_path, "--slo-ms", "1", "--threads", "0.5")
    assert "--cores: input should be" in err


@pytest.mark.skipif(MACHINE.has_smt, reason="this machine has SMT")
def test_smt_where_there_is_none_is_refused(scalebench, tmp_path: Path) -> None:
    """With what to write instead."""
    code, _, err = scalebench("sweep", tmp_path / "sweep", "--smt", "on")
    assert code == 2
    assert "needs hyper-threading" in err


def test_a_spec_with_an_unknown_key_is_refused(scalebench, tmp_path: Path) -> None:
    """Naming the file and the key."""
    spec = tmp_path / "spec.yaml"
    spec.write_text("batchsizes: [1]\n")
    code, _, err = scalebench("sweep", tmp_path / "sweep", "--spec", spec)
    assert code == 2
    assert f"{spec}: unknown parameter 'batchsizes'" in err


@pytest.mark.parametrize("verb", ["report", "status"])
def test_a_folder_with_nothing_in_it_is_told(scalebench, tmp_path: Path, verb: str) -> None:
    """One line, exit code 2."""
    code, _, err = scalebench(verb, tmp_path)
    assert code == 2
    assert len(err.splitlines()) == 1


def test_the_doctor_speaks_by_topic(scalebench, monkeypatch) -> None:
    """Of what the machine can measure and has, and of what its noise was measured."""
    monkeypatch.setattr(noise, "probe_noise", lambda: noise.Noise(10, 10, 11))
    code, out, _ = scalebench("doctor")
    assert code == 0
    topics = [line.partition(":")[0] for line in out.splitlines() if not line.startswith(" ")]
    expected = ["CPU", "Limits", "Memory", "Clock", "Optimizations", "Installed", "Noise"]
    assert topics == expected
    assert "onnxruntime-int8: ONNX Runtime, dynamic int8; linear layers, no convolutions" in out
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert "Noise: the same matrix products over and over, for 10 s" in out
    assert "Quiet" in out


def test_the_doctor_reads_what_the_system_tells(tmp_path: Path, monkeypatch) -> None:
    """Flags and turbo from the kernel's files; what is not installed has its command."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu avx2 avx512f avx_vnni amx_tile\n")
    boost = tmp_path / "sys/devices/system/cpu/cpufreq/boost"
    boost.parent.mkdir(parents=True)
    boost.write_text("1\n")
    monkeypatch.setattr(optimizations, "is_package_installed", lambda package: False)
    monkeypatch.setattr(optimizations, "_CPUINFO", tmp_path / "proc/cpuinfo")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    two = Core(cpus=(0, 2)), Core(cpus=(1, 3), socket=1)
    on = machine(2).model_copy(update={"cores": two, "quota": 1.5})
    told = doctor.topics(on, tmp_path)
    assert {"AVX2: yes", "VNNI (fast int8): yes", "bf16: no"} < set(told["CPU"])
    assert "2 sockets, 2 NUMA nodes; SMT: 2 threads a core" in told["CPU"]
    assert told["Limits"][:2] == ["quota: 1.5 CPUs", "affinity: CPU 0-3"]
    assert told["Clock"] == ["governor: not known", "turbo: on"]
    assert told["Optimizations"][4] == "  this CPU has no bf16"
    assert told["Installed"][0] == "g++: no, compile needs it: apt install g++"
    assert all(line.partition(":")[1:2] == (":",) for line in told["Installed"])
    at = told["Optimizations"].index("openvino: OpenVINO in fp32; models that can be converted")
    assert told["Optimizations"][at + 1] == "  not installed: pip install -e '.[openvino]'"


@pytest.mark.usefixtures("any_model")
def test_a_dry_run_says_how_long_and_writes_nothing(scalebench, tmp_path: Path) -> None:
    """As does the start of a sweep."""
    code, printed, _ = scalebench("sweep", tmp_path / "sweep", "--dry-run", *QUICK)
    assert code == 0
    assert "22 configs to measure" in printed
    left = [line for line in printed.splitlines() if line.startswith("left: ")]
    assert len(left) == 22
    assert left[0] == "left: BERT tiny, batch 1 of 16 tokens, eager, SMT off, threads 1"
    assert not (tmp_path / "sweep").exists()


def times(folder: Path) -> dict[Path, int]:
    """Everything in `folder`, with when it was changed."""
    return {path: path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_who_only_looks_or_is_refused_changes_nothing(scalebench, tmp_path: Path) -> None:
    """Neither in a copy of the example, nor in a sweep of the old schema, nor in a folder with a
    damaged record and a lock of old."""
    example, old, own = (tmp_path / name for name in ("example", "old", "own"))
    shutil.copytree(PROJECT / "outputs" / "bert-example", example)
    shutil.copytree(PROJECT / "tests" / "old_sweep", old)
    here = {"machine": MACHINE, "software": Software.here()}
    records = [one.model_copy(update=here) for one in small_records((1,), model="bert-tiny")]
    save_sweep(own, records)
    for name in (".lock", ".cut.json", f"records/{records[0].name}.json"):
        (own / name).write_text("")
    before = times(tmp_path)
    for arguments, code in (
        (("sweep", example, "--dry-run", "--seed", "1"), 2),  # whatever machine this is
        (("sweep", old, "--dry-run"), 2),
        (("sweep", own, "--dry-run", *QUICK), 0),
        (("sweep", own, "--dry-run", "--retry-failed", *QUICK), 0),
        (("sweep", own), 2),
        (("sweep", own, *QUICK, "--threads", "100000"), 2),
        (("sweep", own, *QUICK, "--against", sys.executable), 2),
        (("sweep", tmp_path / "new", *QUICK, "--placement", "far"), 2),
        (("status", own), 0),
        (("plan", own, "--batch-size", "1", "--rate", "5"), 2),
        (("compare", own, own), 2),
    ):
        assert scalebench(*arguments)[0] == code, arguments
        assert times(tmp_path) == before, arguments


def test_status_tells_what_failed_and_what_is_left(scalebench, tmp_path: Path) -> None:
    """And why."""
    records = small_records(batch_sizes=(1,))
    failed = missing(records[1].config, records[1].machine, "failed", "no luck")
    save_sweep(tmp_path, [records[0], failed])
    code, printed, _ = scalebench("status", tmp_path)
    assert code == 0
    assert "1 done, 1 failed, 0 left" in printed
    assert "TorchScript, SMT off: no luck" in printed


def test_status_tells_what_a_sweep_is_doing_now(scalebench, tmp_path: Path) -> None:
    """Only while it does it."""
    save_sweep(tmp_path, small_records(batch_sizes=(1,)))
    write_status(tmp_path, "round 2, 3 trials in turn, 5 cycles, about 4 min left")
    assert "running" not in scalebench("status", tmp_path)[1]
    with lock_folder(tmp_path):
        code, printed, _ = scalebench("status", tmp_path)
    assert code == 0
    assert "running: round 2, 3 trials in turn, 5 cycles, about 4 min left" in printed
    write_status(tmp_path, None)
    with lock_folder(tmp_path):
        assert "running" not in scalebench("status", tmp_path)[1]


@pytest.mark.usefixtures("kernels_for_all")
def test_a_sweep_measures_renders_and_is_resumed_by_the_same_command(
    scalebench, tmp_path: Path
) -> None:
    """Records, executed notebooks and the page; the second time nothing is left to do."""
    out = tmp_path / "sweep"
    arguments = ("sweep", out, "--batch-sizes", "2", *QUICK)
    code, first, err = scalebench(*arguments)
    assert code == 0, err
    assert f"page: {(out / 'index.html').as_uri()}" in first.splitlines()
    assert all(path.read_bytes()[1:4] == b"PNG" for path in (out / "figures").iterdir())
    records = load_records(out)
    assert {record.config.optimization for record in records} == {"none", "script"}
    assert {record.status for record in records} == {"ok"}
    for record in records:
        assert (out / "notebooks" / f"{record.name}.ipynb").exists()
    code, second, err = scalebench(*arguments)
    assert code == 0
    assert "0 configs to measure" in second
    assert "2 done before" in second
    assert load_records(out) == records


@pytest.mark.slow
@pytest.mark.usefixtures("kernels_for_all")
def test_a_sweep_with_a_failure_does_the_rest_and_exits_with_1(scalebench, tmp_path: Path) -> None:
    """bert-tiny has no pretrained weights; the page says so."""
    out = tmp_path / "sweep"
    code, _, err = scalebench("sweep", out, "--batch-sizes", "1", *QUICK, "--weights", "pretrained")
    assert code == 1
    assert "2 configs failed" in err
    assert "has no published ones" in (out / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_says_how_to_go_on(tmp_path: Path, sent, code: int) -> None:
    """And leaves no kernel behind, not even one that is just starting."""
    out = tmp_path / "sweep"
    options = ("--batch-sizes", "1", *QUICK, "--max-seconds", "60", "--kernels", "fresh")
    arguments = command("sweep", out, *options)
    run = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    family = psutil.Process(run.pid).children
    wait_until(lambda: any("-f" in child.cmdline() for child in family()))  # a kernel
    family = family(recursive=True)
    run.send_signal(sent)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == code
    assert errors.splitlines()[-1].endswith("and it goes on by the same command")
    assert errors.splitlines()[-1].endswith(
        "is kept, 'scalebench report' shows it, and it goes on by the same command"
    )
    assert not (out / "records").exists()
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_help_is_no_markup(scalebench) -> None:
    """typer before 0.23 put backslashes before brackets."""
    code, printed, _ = scalebench("sweep", "--help")
    assert code == 0
    assert "[default: none,script]" in " ".join(printed.split())
    assert "\\" not in printed


def test_the_help_of_a_sweep_begins_with_what_everybody_needs(scalebench) -> None:
    """And says what the presets measure."""
    lines = scalebench("sweep", "--help")[1].splitlines()
    options = [line.split()[0].removeprefix("--") for line in lines if line.startswith("  --")]
    often = "model batch-sizes optimizations threads smt seq-lens rounds max-seconds preset"
    assert options[:9] == often.split()
    printed = " ".join(" ".join(lines).split())
    assert "quick (batch 1 to 64, the fastest engines installed, 2 s a point) or page" in printed


@pytest.mark.usefixtures("any_model")
def test_a_sweep_goes_on_by_what_is_in_its_folder_unless_a_preset_is_named(
    scalebench, tmp_path: Path
) -> None:
    """So that an axis that is added has the limits and rounds of before."""
    out, spec = tmp_path / "sweep", tmp_path / "mine.yaml"
    out.mkdir()
    sizes = Sweep(batch_sizes=(1, 4), optimizations=("none",), rounds=3, max_seconds=1.5)
    for path in (out / "sweep.yaml", spec):
        path.write_text(sizes.dump())
    for options, first, told in (
        ((), f"continues {out / 'sweep.yaml'}", "2 configs to measure in 3 rounds"),
        (
            ("--batch-sizes", "1,4,8"),
            f"continues {out / 'sweep.yaml'}",
            "3 configs to measure in 3",
        ),
        (("--preset", "page"), "starts from the preset page", "22 configs to measure in 2 rounds"),
        (("--spec", spec, "--rounds", "1"), f"starts from {spec}", "2 configs to measure in 1 r"),
    ):
        code, printed, err = scalebench("sweep", out, "--dry-run", "--smt", "off", *options)
        assert code == 0, err
        assert printed.splitlines()[0] == first
        assert told in printed


def test_a_second_sweep_into_a_folder_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """Within a second: what runs notebooks takes longer than that to import."""
    code = (
        "import sys; from scalebench_lib import cli\n"
        "try: cli.main()\n"
        "finally: print('papermill' in sys.modules)"
    )
    with lock_folder(tmp_path):
        second = [sys.executable, "-c", code, "sweep", str(tmp_path)]
        run = subprocess.run(second, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "False\n")
    [complaint] = run.stderr.splitlines()
    assert f"another sweep is running in {tmp_path} (process {os.getpid()})" in complaint


def test_compare_tells_and_exits_by_what_it_found(scalebench, tmp_path: Path) -> None:
    """0 for the same, 1 for slower, 2 for what must not be compared."""
    one_slower = {simulated.CONFIGS[0].id: 1.2}
    before, same, slower = (
        simulated.sweep(simulated.steady, seed, rounds=4, slower=factor).records
        for seed, factor in ((0, 1.0), (1, 1.0), (2, one_slower))
    )
    one, two, three = (
        save_sweep(tmp_path / name, records)
        for name, records in (("one", before), ("two", same), ("three", slower))
    )
    other = [r.model_copy(update={"machine": machine(cores=4)}) for r in same]
    code, printed, _ = scalebench("compare", one, two)
    assert (code, "12 same" in printed) == (0, True)
    code, printed, _ = scalebench("compare", one, three, "--markdown", "--to", tmp_path / "found")
    assert (code, printed.count("**slower**")) == (1, 2)
    assert (tmp_path / "found" / "compare.png").exists()
    code, _, err = scalebench("compare", one, save_sweep(tmp_path / "other", other))
    assert (code, "--anyway" in err) == (2, True)


def failed_sweep(out: Path, reason: str) -> Path:
    """A sweep whose only config failed for this `reason`."""
    record = small_records([1], optimizations=["none"])[0]
    return save_sweep(out, [missing(record.config, record.machine, "failed", reason)])


def test_square_brackets_are_printed_as_they_are(scalebench, tmp_path: Path) -> None:
    """A reason is no markup, which would eat it or end the sweep."""
    reason = "pip install 'scalebench[x]' [/b]"
    _, printed, _ = scalebench("status", failed_sweep(tmp_path / "sweep", reason))
    assert reason in printed


def test_a_terminal_of_ascii_gets_what_it_can_show(tmp_path: Path) -> None:
    arguments = command("status", failed_sweep(tmp_path / "sweep", "too large …"))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert r"too large \u2026" in found.stdout


def test_a_closed_pipe_ends_the_command_with_a_word(tmp_path: Path) -> None:
    save_sweep(tmp_path / "sweep", small_records([1, 4]))
    arguments = command("status", tmp_path / "sweep")
    read, write = os.pipe()
    os.close(read)
    found = subprocess.run(arguments, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert found.returncode == 1
    assert found.stderr == ("scalebench: stopped: standard output was closed\n")


def test_only_what_measures_says_that_what_was_measured_is_kept(monkeypatch) -> None:
    """A command that only reads keeps nothing."""
    for words, kept in (("sweep out", True), ("plan out --verify", True), ("plan out", False)):
        monkeypatch.setattr(sys, "argv", ["scalebench", *words.split()])
        message, code = cli._message_and_code(cli.Interrupted(signal.SIGINT))
        assert (code, message.endswith("goes on by the same command")) == (130, kept)
