"""The page holds what the published scalebench pages hold, in their order, and opens offline."""

import base64
import hashlib
import operator
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml

from scalebench_lib.analysis import page
from scalebench_lib.analysis.findings import (
    COARSE,
    EXPORTED,
    column_words,
    conclusions,
    recommendations,
    table_notes,
)
from scalebench_lib.analysis.page import figure_specs, write_page
from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError
from scalebench_lib.notebook import PROJECT
from scalebench_lib.record import Record, Verification, load_records
from scalebench_lib.results import Results
from scalebench_lib.text import format_number
from tests import factories
from tests.analysis.test_compare import with_passes

pytestmark = pytest.mark.usefixtures("undrawn")

BATCH_SIZES = [2**k for k in range(11)]


class Parsed(HTMLParser):
    """What the tests ask of a page: its tags with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note the tag."""
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        """Note the text."""
        self.text += data

    def every(self, tag: str, attribute: str) -> list[str | None]:
        """The attribute's values in the order of the page."""
        return [found.get(attribute) for name, found in self.tags if name == tag]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole page of a machine with 16 cores and 32 threads."""
    out = factories.save_sweep(tmp_path_factory.mktemp("full"), factories.full_records())
    write_page(out)
    return out


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The folder of a quick sweep of 2 cores without SMT; its page is not yet written."""
    return factories.save_sweep(tmp_path, factories.small_records([1, 4]))


def table_of(records: list[Record]) -> pd.DataFrame:
    """The table that a page is drawn from."""
    return Results(records).table


def figures(out: Path) -> set[str]:
    """The names of the figures in the folder."""
    return {path.name for path in (out / "figures").iterdir()}


BARS = [f"bert-{view}-{size}.png" for view in ("time", "start", "memory") for size in (1, 1024)]
"""Figures of the smallest and the largest batch."""


def markdown(out: Path) -> str:
    """The page for the scalebench site."""
    return (out / "index.md").read_text(encoding="utf-8")


def pictures(out: Path) -> list[tuple[str, str]]:
    """The Markdown page's pictures with their alternative texts, in order."""
    return re.findall(r'<img src="([^"]+)" alt="([^"]+)"', markdown(out))


def test_the_whole_page_has_its_figures_by_name(full: Path) -> None:
    """11 batches and 2 of script, for latency and for throughput; and the speed-up over eager."""
    kinds = [*BATCH_SIZES, "script-False", "script-True"]
    named = {f"bert-{m}-{k}.png" for m in ("latency", "throughput") for k in kinds}
    assert figures(full) == {*named, *BARS, "bert-speedup.png"}


def test_the_markdown_page_has_the_published_order(full: Path) -> None:
    """Front matter, headings, pictures and alternative texts as on the scalebench site."""
    front = yaml.safe_load(markdown(full).split("---")[1])
    assert front == {"layout": "scalebench", "title": "BERT"}
    assert re.findall(r"^#+ .*$", markdown(full), re.M) == [
        "# Latency (Sequential)",
        "## Latency Per Batch",
        "## Latency Per Optimization",
        "# Throughput (Sequential)",
        "## Throughput Per Batch",
        "## Throughput Per Optimization",
    ]
    expected = [
        (f"figures/bert-{metric.lower()}-{name}.png", f"BERT {metric} {alt}")
        for metric in ("Latency", "Throughput")
        for name, alt in [
            *((str(size), f"BS={size}") for size in BATCH_SIZES),
            ("script-False", "HT=False"),
            ("script-True", "HT=True"),
        ]
    ]
    assert pictures(full) == expected


def test_the_html_page_has_a_place_for_every_figure(full: Path) -> None:
    """In the order of the Markdown page; without a script the files stand there."""
    parsed = Parsed(full / "index.html")
    places = [found for tag, found in parsed.tags if tag == "figure" and "data-chart" in found]
    gallery = [Path(name).stem for name, _ in pictures(full)]
    assert [place["id"] for place in places] == [*gallery, *(Path(name).stem for name in BARS)]
    shown = list(zip(parsed.every("img", "src"), parsed.every("img", "alt"), strict=True))
    assert shown[:-6] == [("figures/bert-speedup.png", "BERT Speed-up"), *pictures(full)]
    assert shown[-6] == ("figures/bert-time-1.png", "BERT Where the time goes BS=1")


def test_the_html_page_opens_offline(full: Path) -> None:
    """No address leads out of the file, and every link within it arrives."""
    parsed = Parsed(full / "index.html")
    ids = {found["id"] for _, found in parsed.tags if "id" in found}
    links = [str(link) for link in parsed.every("a", "href")]
    files = {link for link in links if not link.startswith("#")}
    assert all((full / link).exists() for link in files)
    assert {"results.csv", "records/bert-none-smt_off-bs1-44136f-t1.json"} <= files
    assert "BERT, batch 1 of 16 tokens, eager, SMT off, trial 1" in parsed.text
    assert len(links) > 26
    assert {link.removeprefix("#") for link in links} - ids - files == set()
    assert not {"link", "iframe"} & {tag for tag, _ in parsed.tags}
    assert parsed.every("script", "src") == [None, None]
    policy = next(str(f["content"]) for t, f in parsed.tags if t == "meta" and "http-equiv" in f)
    assert policy.startswith("default-src 'none'; ")


def test_only_the_pages_own_script_may_run(full: Path) -> None:
    """Its hash is in the page's policy, so no other text can become a script."""
    page = (full / "index.html").read_text(encoding="utf-8")
    script = page.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in page


def test_vendored_libraries_are_the_ones_that_were_taken() -> None:
    """Byte for byte, each with its licence beside it."""
    folder = Path(page.__file__).parent / "vendor"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert {path.name for path in folder.glob("LICENSE-*")} == {"LICENSE-d3", "LICENSE-plot"}


def test_the_whole_page_is_small_enough_to_send(full: Path) -> None:
    """26 figures in one file of less than 5 MB."""
    assert (full / "index.html").stat().st_size < 5e6


def test_the_html_page_has_the_best_of_each_batch_size(full: Path) -> None:
    """The fastest latency in the table is the one that the page gives."""
    table = pd.read_csv(full / "results.csv")
    text = Parsed(full / "index.html").text
    for size in BATCH_SIZES:
        best = table.loc[table["batch_size"] == size, "latency_ms"].min()
        assert format_number(best) in text


def test_the_results_are_written_in_the_columns_of_the_table(full: Path) -> None:
    """One row a point, read back with the names that other tools count on."""
    table = pd.read_csv(full / "results.csv")
    assert len(table) == 11 * 2 * (16 + 32)
    assert {"batch_size", "threads", "latency_ms", "throughput", "coarse"} <= set(table.columns)


def test_the_page_says_where_its_numbers_come_from(full: Path) -> None:
    """Machine, system, packages and day."""
    text = Parsed(full / "index.html").text
    for fact in ("Madeup 9000, 16 cores, 32 threads", "2025-03-01", "torch 2.6.0", "seed 0"):
        assert fact in text


def test_without_smt_the_page_says_so_in_that_place(small: Path) -> None:
    """A sentence where the HT=True figures would stand, and no picture that is not there."""
    write_page(small)
    sentence = "This machine has no hyper-threading (SMT)"
    per_optimization = markdown(small).split("## Throughput Per Optimization")[1]
    assert sentence in per_optimization
    assert Parsed(small / "index.html").text.count(sentence) == 2
    assert "HT=True" not in [alt for _, alt in pictures(small)]
    assert {source.removeprefix("figures/") for source, _ in pictures(small)} == (
        {name for name in figures(small) if "latency" in name or "throughput" in name}
    )


def test_smt_that_was_left_out_is_not_called_missing(tmp_path: Path) -> None:
    """A machine that has SMT, measured without: the page says that, not that it has none."""
    on = factories.machine(cores=2, smt=True)
    off = [config for config in factories.configs(on, [1]) if not config.smt]
    factories.save_sweep(tmp_path, [factories.measured(config, on) for config in off])
    write_page(tmp_path)
    assert "SMT) was not measured in this sweep" in markdown(tmp_path)


def test_a_hostile_reason_is_shown_as_text(tmp_path: Path) -> None:
    """Reasons come from elsewhere: the page shows them, and runs nothing."""
    on = factories.machine(cores=2, smt=False)
    none, script = factories.configs(on, [8])
    reason = "<script>alert('x')</script> & <b>"
    records = [factories.measured(none, on), factories.missing(script, on, "failed", reason)]
    write_page(factories.save_sweep(tmp_path, records))
    parsed = Parsed(tmp_path / "index.html")
    assert f"batch 8, TorchScript: failed, {reason}" in parsed.text
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert "b" not in {tag for tag, _ in parsed.tags}
    assert "<script>" not in markdown(tmp_path)


def test_a_model_and_a_machine_named_script_are_shown_as_text(tmp_path: Path) -> None:
    """Folders may be called anything, and CPUs too."""
    name = "<script>alert(1)"
    on = factories.machine(cores=2, smt=False).model_copy(update={"cpu_model": name})
    configs = [c.model_copy(update={"model": f"./{name}"}) for c in factories.configs(on, [1])]
    write_page(
        factories.save_sweep(tmp_path, [factories.measured(config, on) for config in configs])
    )
    parsed = Parsed(tmp_path / "index.html")
    assert name in parsed.text
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert "<script>" not in markdown(tmp_path)
    assert all("<" not in figure for figure in figures(tmp_path))


def test_a_batch_that_was_never_measured_has_words_in_its_place(tmp_path: Path) -> None:
    """No broken picture: the reason stands where the figure would."""
    on = factories.machine(cores=2, smt=False)
    records = factories.small_records([1])
    for config in factories.configs(on, [1024]):
        records.append(factories.missing(config, on, "skipped", "would need 30 GiB"))
    write_page(factories.save_sweep(tmp_path, records))
    assert "BERT Latency BS=1024: not measured. batch 1024, eager: skipped" in markdown(tmp_path)
    assert "bert-latency-1024.png" not in figures(tmp_path)
    assert "bert-latency-1024.png" not in markdown(tmp_path)


def test_figures_of_an_earlier_page_are_removed_and_others_kept(small: Path) -> None:
    """What no longer belongs would be taken for a result; what is not ours is not touched."""
    write_page(small, Results(factories.small_records([1, 4, 16])))
    assert "bert-latency-16.png" in figures(small)
    (small / "figures" / "my-photo.png").write_bytes(b"mine")
    write_page(small)
    assert "bert-latency-16.png" not in figures(small)
    assert (small / "figures" / "my-photo.png").read_bytes() == b"mine"


def test_the_same_records_give_the_same_page(small: Path) -> None:
    """Rebuilding changes nothing, so that a page can be kept under version control."""
    before = write_page(small).read_bytes()
    assert write_page(small).read_bytes() == before


def test_a_folder_without_records_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Nothing is written where nothing was measured."""
    with pytest.raises(RequestError, match="no records"):
        write_page(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_sequence_lengths_get_a_suffix_unless_default() -> None:
    """16 tokens keep their name; 128 are told apart in name and alternative text."""
    records = [*factories.small_records([1]), *factories.small_records([1], seq_len=128)]
    named = {spec.name: spec.alt for spec in figure_specs(table_of(records))}
    assert named["bert-latency-1"] == "BERT Latency BS=1"
    assert named["bert-latency-1-seq128"] == "BERT Latency BS=1 seq128"
    assert named["bert-throughput-script-False-seq128"] == "BERT Throughput HT=False seq128"


def test_one_sequence_length_needs_no_suffix() -> None:
    """Whatever it is: the page's caption tells it."""
    names = [
        spec.name for spec in figure_specs(table_of(factories.small_records([1], seq_len=128)))
    ]
    assert names[0] == "bert-latency-1"


def test_several_image_sizes_are_told_apart_wherever_they_are_shown(tmp_path: Path) -> None:
    """In the names of figures, the choices of the live page, and the table of every point."""
    peaks = {threads: {"fp32": 100.0 * threads} for threads in (1, 2)}
    records = [
        record.model_copy(update={"peak_gflops": peaks})
        for size in (224, 64)
        for record in factories.small_records([1], model="resnet50", image_size=size)
    ]
    parsed = Parsed(write_page(factories.save_sweep(tmp_path, records)))
    assert {"resnet50-latency-1-px64.png", "resnet50-peak-px64.png"} <= figures(tmp_path)
    assert "image_size" in parsed.every("select", "name")
    charts = [found.get("data-chart") or "" for tag, found in parsed.tags if tag == "figure"]
    sizes = [chart.split("/")[3] for chart in charts if "/peak/" in chart]
    assert sizes == ["64", "224"]
    assert "Image size" in parsed.text.split("Every point")[-1]


def test_interleaved_placement_is_the_heading(tmp_path: Path) -> None:
    """A sweep that dealt its cores out across sockets has that word in its headings."""
    factories.save_sweep(tmp_path, factories.small_records([1], placement="interleave"))
    write_page(tmp_path)
    assert "# Latency (Interleave)" in markdown(tmp_path)
    assert "Sequential" not in markdown(tmp_path)


def test_none_alone_has_figures_of_its_own() -> None:
    """Eager stands to compare with, but a sweep of nothing else must not be an empty page."""
    alone = [r for r in factories.small_records([1]) if r.config.optimization == "none"]
    assert "bert-latency-none-False" in [spec.name for spec in figure_specs(table_of(alone))]


def test_several_optimizations_are_told_apart_in_the_alternative_text() -> None:
    """With one it would say nothing; with two, HT=False alone would not do."""
    table = table_of(factories.small_records([1]))
    other = table[table["optimization"] == "script"].assign(optimization="faster")
    alts = [spec.alt for spec in figure_specs(pd.concat([table, other]))]
    assert "BERT Latency Opt=script HT=False" in alts
    assert "BERT Latency Opt=faster HT=False" in alts


def test_a_models_name_cannot_lead_out_of_the_folder() -> None:
    """Imported tables hold names that nobody checked."""
    table = table_of(factories.small_records([1])).assign(model="../../etc/model")
    assert {spec.name for spec in figure_specs(table) if "/" in spec.name} == set()


def test_findings_are_computed_from_the_table() -> None:
    """They name the best points, and give the speedups that the records were made with."""
    measured = Results(factories.full_records())
    found, table = conclusions(measured), measured.table
    fastest = table.loc[table["latency_ms"].idxmin()]
    assert found[0].startswith(f"Lowest latency: {format_number(fastest['latency_ms'])} ± ")
    ratio = re.search(r"TorchScript: ([\d.]+)× as fast as eager", "\n".join(found))
    assert ratio
    assert float(ratio[1]) == pytest.approx(factories.SCRIPT_SPEEDUP, rel=0.05)
    assert any(re.match(r"SMT on: [\d.]+× as fast as SMT off", sentence) for sentence in found)


def test_a_winner_within_noise_is_not_called_the_fastest() -> None:
    """Where the ratio to the runner-up holds 1, that is what is said, and in the table too."""
    small = factories.small_records([1])
    assert any(told.startswith("Run TorchScript, 2 threads: ") for told in findings_of(small))
    twins = [small[0], as_script(small[0])]
    told = "\n".join(findings_of(twins))
    assert "Run TorchScript" not in told
    assert "No measurable difference to TorchScript." in told
    assert "Largest speed-up: none measurable over eager; largest" in told
    assert "TorchScript: no measurable difference to eager" in told
    (answer,) = recommendations(Results([small[0], as_script(small[0], 999)]))
    run, why = answer.advice[1]
    assert run.startswith("Run eager, 2 threads: ")
    assert why == "Nothing is measurably faster."


def with_error(record: Record, sqnr_db: float, **update: object) -> Record:
    """Return `record` with an error against fp64."""
    found = Verification(max_abs_error=0.1, items=3, sqnr_db=sqnr_db, reference="fp64")
    return record.model_copy(update={"verification": found, **update})


def test_the_fastest_is_no_order_where_its_outputs_differ() -> None:
    """An error of 26 dB below the signal is 5 %, of random weights no more than a hint."""
    none, script = factories.small_records([1])
    (answer,) = recommendations(Results([with_error(none, 120), with_error(script, 26)]))
    fastest, differs, less = answer.advice[1]
    assert fastest.startswith("Fastest: TorchScript, 2 threads: ")
    assert differs == "Its outputs differ by 5 %: check the accuracy with your own weights."
    assert less == "With less error, nothing is measurably faster than eager."
    trained = script.config.model_copy(update={"weights": "pretrained"})
    update = {"config": trained, "config_id": trained.id}
    (answer,) = recommendations(Results([with_error(script, 26, **update)]))
    assert answer.advice[1][1] == "Its outputs differ by 5 %."
    (answer,) = recommendations(Results([with_error(none, 120), with_error(script, 110)]))
    assert answer.advice[1][0].startswith("Run TorchScript")


def as_script(record: Record, times: int = 1001) -> Record:
    """The same passes, of TorchScript that takes so many thousandths of the time."""
    config = record.config.model_copy(update={"optimization": "script"})
    slower = with_passes(record, lambda passes: [ns * times // 1000 for ns in passes])
    return slower.model_copy(update={"config": config, "config_id": config.id})


def findings_of(records: list[Record]) -> list[str]:
    """What is found in a sweep of `records`."""
    return conclusions(Results(records))


def test_a_speedup_of_two_turns_that_differ_much_is_none(tmp_path: Path) -> None:
    """Its interval has no bounds; the picture has a place for it all the same."""
    out = factories.save_sweep(tmp_path, map(_of_two_turns, factories.small_records((1, 4))))
    lines = [line for answer in recommendations(Results.load(out)) for line in answer.lines]
    assert "none measurable over eager; largest " in " ".join(lines)
    assert "(too few turns)" in " ".join(lines)
    assert write_page(out, Results.load(out)).exists()


def _of_two_turns(record: Record) -> Record:
    """`record`; but of each point one turn is much faster where it is not eager."""
    eager = record.config.optimization == "none"
    points = [
        factories.with_turns(
            p, factories.turns((p.samples_ns[0], p.samples_ns[1] // (1 + 90 * (not eager))))
        )
        for p in record.points
    ]
    return record.model_copy(update={"points": tuple(points)})


def test_findings_say_what_ratios_and_intervals_rest_on() -> None:
    """Of one round the spread is assumed; of two it is measured, of eight it is well known."""
    one = factories.small_records([1])
    again = [
        record.model_copy(update={"trial": n, "round": n, "block": f"0000000{n}"})
        for n in range(2, 9)
        for record in one
    ]
    for records, said in (
        (one, "One round only"),
        ([*one, *again[: len(one)]], "Latencies have wide"),
    ):
        assert any(told.startswith(said) for told in findings_of(records))
    told = findings_of([*one, *again])
    assert not any(each.startswith(("One round only", "Latencies have wide")) for each in told)


def test_records_of_unlike_conditions_are_said_to_be_pooled() -> None:
    """As of two versions of a model, measured by hand, under the same name."""
    records = factories.small_records([1])
    assert "unlike" not in " ".join(conclusions(Results(records)))
    other = {"model_hash": "b", "trial": 2}
    both = [records[0].model_copy(update={"model_hash": "a"}), records[0].model_copy(update=other)]
    said = "Latencies pool records of unlike conditions: model's structure and weights a, b."
    assert said in conclusions(Results(both))


def test_where_the_mean_differs_from_the_median_both_are_said() -> None:
    """A quota stops every fourth pass for as long as three take."""
    (record, *_) = factories.small_records([1])
    stops = [1, 1, 1, 4, 1, 1, 1, 4]
    throttled = with_passes(record, lambda passes: map(operator.mul, passes, stops))
    told = "\n".join(findings_of([throttled]))
    assert re.search(r"Lowest latency: [\d.± ]+ ms, with .*; mean [\d.]+ ms", told)
    assert re.search(r"inferences/s, with .*; [\d.]+ sustained", told)
    assert "At 2 of 2 points the mean of the passes differs" in told


def test_a_sweep_that_was_disturbed_says_so_on_its_pages(small: Path) -> None:
    """And counts it by point; else neither columns nor sentences are there."""
    calm = Parsed(write_page(small)).text + markdown(small)
    assert "Something else was computing" not in calm
    assert "Shared turns" not in calm
    shutil.rmtree(small / "records")
    records = [
        factories.disturbed(record, 5, waited=0.5) for record in factories.small_records([1, 4])
    ]
    parsed = Parsed(write_page(factories.save_sweep(small, records)))
    for text in (parsed.text, markdown(small)):
        assert "Something else was computing here: it shared 20 of 64 turns" in text
    assert "Shared turns" in parsed.text
    assert "One in which something else was computing" in parsed.text
    assert "Throttled periods" not in parsed.text
    table = pd.read_csv(small / "results.csv")
    assert table["shared"].sum() == 20


def test_findings_of_records_of_the_old_schema_say_that_they_were_not_paired() -> None:
    """They took no turns."""
    told = "\n".join(conclusions(Results.load(PROJECT / "tests" / "old_sweep")))
    assert "whose configs did not take turns" in told
    assert "paired" not in told


def test_findings_compare_allocators_with_all_else_equal() -> None:
    """These were made up alike, so they differ by noise."""
    records = [*factories.small_records([1]), *factories.small_records([1], allocator="tcmalloc")]
    told = [one for one in findings_of(records) if one.startswith("tcmalloc")]
    assert re.match(r"tcmalloc: no measurable difference to the default allocator", told[-1])
    compared = [one for one in findings_of(records) if "eager at the same batch size" in one]
    assert len(compared) == 1


def test_batch_sizes_that_serve_as_much_are_named_with_the_highest_throughput() -> None:
    """Twice the items in twice the time is no higher throughput."""
    one, two = (
        next(r for r in factories.small_records([1, 2]) if r.config_id == config.id)
        for config in (Config(batch_size=1), Config(batch_size=2))
    )
    twice = with_passes(one, lambda passes: (2 * ns for ns in passes)).points
    two = two.model_copy(update={"points": twice})
    (fact,) = [told for told in findings_of([one, two]) if told.startswith("Highest throughput")]
    assert re.search("no measurable difference to batch [12]", fact)
    assert "no measurable difference" not in findings_of(factories.small_records([1, 64]))[1]


def with_few_turns(record: Record) -> Record:
    """Return `record` with 3 turns a point."""
    points = (one.model_copy(update={"turns": one.turns[:3]}) for one in record.points)
    return record.model_copy(update={"points": tuple(points)})


def test_a_page_says_once_that_all_of_it_is_coarse() -> None:
    """And not at each latency."""
    records = [with_few_turns(record) for record in factories.small_records([1])]
    assert any(one.startswith("Every point is coarse") for one in findings_of(records))
    tables = [
        table for answer in recommendations(Results(records)) for table in answer.rankings.values()
    ]
    assert not any(table["Latency, ms"].str.contains("coarse").any() for table in tables)


def test_marks_in_a_table_are_explained_under_it() -> None:
    """Here 6 turns of a second each make a point fine."""
    none, script = factories.small_records([1])
    slow = (one.model_copy(update={"spent_s": 3.0}) for one in with_few_turns(script).points)
    anew = script.setup.model_copy(update={"export_cache": "empty", "ready_s": 20.0})
    script = script.model_copy(update={"points": tuple(slow), "setup": anew})
    results = Results([none, script])
    answers = recommendations(results)
    row = answers[0].rankings[1].iloc[0]
    assert row["Latency, ms"].endswith(f" {COARSE}")
    assert row["Cold start, s"].endswith(f" {EXPORTED}")
    told = list(table_notes(results, answers))
    assert f"{COARSE}: fewer than 6 turns, so the interval is a rough guess; " in told[1]
    assert told[1].endswith("--max-seconds 3 gives finer points.")
    assert told[2].startswith(f"{EXPORTED}: with exporting and compiling")
    assert list(column_words(results, answers)) == ["Speed-up", "Memory", "Cold start"]
    assert len(list(table_notes(Results([none]), recommendations(Results([none]))))) == 1


def test_a_page_explains_its_words_and_no_others(small: Path) -> None:
    """With the meanings of columns, which the Markdown has too."""
    page = Parsed(write_page(small))
    assert "#words" in page.every("a", "href")
    assert "words" in page.every("h2", "id")
    words = page.text.rpartition("Words on this page")[2]
    for meaning in ("PairedA ratio of points", "TurnAbout 0.3 s", "MemoryHeld by the process"):
        assert meaning in words
    for word in ("Coarse", "Via eager", "Outlier", "Stolen share"):
        assert word not in page.text
    assert "Memory: held by the process between turns." in markdown(small)


def test_more_than_all_of_the_matrix_product_is_explained(tmp_path: Path) -> None:
    """The yardstick is PyTorch's, which another engine may beat."""
    peaks = {threads: {"fp32": 1e-3} for threads in (1, 2)}
    records = [r.model_copy(update={"peak_gflops": peaks}) for r in factories.small_records([1])]
    out = factories.save_sweep(tmp_path, records)
    text = Parsed(write_page(out)).text
    assert "Share of PyTorch matmul" in text
    for told in (text, markdown(out)):
        assert "More than 100 %: this engine multiplies faster than PyTorch" in told


def test_headings_for_people_are_in_words_and_those_of_the_site_as_published(full: Path) -> None:
    """So are the alternative texts."""
    text = Parsed(full / "index.html").text
    assert "Latency, cores filled in order" in text
    assert "Latency by batch size" in text
    assert "batch 64" in text
    assert "(Sequential)" not in text
    assert "# Latency (Sequential)" in markdown(full)


def test_findings_say_nothing_of_what_was_not_measured() -> None:
    """Without SMT and without optimizations there is nothing to compare."""
    alone = [r for r in factories.small_records([1]) if r.config.optimization == "none"]
    assert not any("as fast as eager" in sentence for sentence in findings_of(alone))


def test_the_best_point_of_a_batch_has_its_lowest_latency() -> None:
    """One row for each batch size."""
    measured = Results(factories.small_records([1, 4]))
    (answer,) = recommendations(measured)
    least = measured.table.groupby("batch_size")["latency_ms"].min()
    shown = answer.best.set_index("Batch size")["Latency, ms"]
    assert {int(size): text.split(" ")[0] for size, text in shown.items()} == {
        size: format_number(value) for size, value in least.items()
    }


@pytest.mark.parametrize(("sizes", "optimizations"), [([10], ["none"]), ([3, 1000], ["script"])])
def test_any_batch_sizes_have_a_page(
    tmp_path: Path, sizes: list[int], optimizations: list[str]
) -> None:
    """Without a power of two, without eager."""
    on = factories.machine(cores=2)
    configs = factories.configs(on, sizes, optimizations)
    out = factories.save_sweep(tmp_path, [factories.measured(config, on) for config in configs])
    write_page(out)
    kinds = [*map(str, sizes), *(f"{optimizations[0]}-{smt}" for smt in (False, True))]
    names = {path.stem for path in (out / "figures").glob("*latency*.png")}
    assert names == {f"bert-latency-{kind}" for kind in kinds}


def test_a_page_that_fails_halfway_leaves_the_old_one(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while drawing must not cost the page that was there."""
    before = write_page(small).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(page, "draw", fail)
    with pytest.raises(OSError, match="disk full"):
        write_page(small)
    assert (small / "index.html").read_bytes() == before
    assert (small / "figures" / "bert-latency-1.png").exists()


@pytest.mark.parametrize(
    "folder", [PROJECT / "outputs" / "bert-example", PROJECT / "tests" / "old_sweep"]
)
def test_records_in_the_repository_can_be_rendered(folder: Path, tmp_path: Path) -> None:
    """The example, whole; and records older than some of the columns."""
    out = tmp_path / "example"
    shutil.copytree(folder, out)
    assert write_page(out).exists()
    assert len(load_records(out)) == len(list((folder / "records").iterdir()))


def test_with_a_price_there_is_what_a_million_requests_cost(tmp_path: Path) -> None:
    """By the upper end of the latency, with a fifth of the machine's time left unused."""
    results = Results(factories.small_records([4]))
    assert "Cost, per million" not in recommendations(results)[0].best
    fastest = results.table.sort_values("latency_ms").iloc[0]
    cost = 1e6 * 3.6 / 3600 / (0.8 * 4e3 / fastest["latency_ms_high"])
    best = recommendations(results, 3.6)[0].best
    assert best["Cost, per million"].tolist() == [format_number(cost)]
    page = write_page(tmp_path, results, 3.6).read_text(encoding="utf-8")
    assert "Cost: of a million requests at 3.6 an hour" in page
    assert "Cost" not in write_page(tmp_path, results).read_text(encoding="utf-8")
