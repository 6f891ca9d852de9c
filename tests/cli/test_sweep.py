"""`exfm sweep`: a grid of runs, resumed, compared over seeds."""

from __future__ import annotations

import copy
import io
import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import exfm
from exfm.experiment.sweep import folder_name, parse_axes
from exfm.reporting.seeds import t_quantile95
from exfm.reporting.sweep_comparisons import sweep_comparison_table
from exfm.reporting.sweep_plot import draw_series
from exfm.reporting.sweep_ratios import sweep_ratio_table
from exfm.reporting.sweep_summary import PointResult, render_png, render_sweep, summarize

Cli = Callable[..., Any]
DIM = "models.vm.embedding_dim"
GRID = ("--over", f"{DIM}=4,8", "--over", "seed=1,2")


@pytest.fixture
def tiny(experiment: dict[str, Any], write: Callable[..., str]) -> str:
    """An experiment of two windows whose VM learns from the first row on."""
    experiment["stream"]["source"]["rows_per_day"] = 100
    del experiment["models"]["vm"]["where"]
    # An auxiliary head teaches the other layers from the second batch on.
    experiment["models"]["vm"]["batch_size"] = 25
    return write(experiment)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def swept(kept: Path, tiny: str, exfm_cli: Cli, tmp_path: Path) -> Path:
    """The folder of a complete 2 x 2 sweep, run once for all tests; each gets a copy under its own run_dir."""
    if not any(kept.iterdir()):
        outcome = exfm_cli("sweep", tiny, *GRID, f"run_dir={kept}")
        assert outcome.status == 0, outcome.err
        assert outcome.err.startswith("4 points, 4 to run\n") and outcome.err.count(": complete") == 4
        (kept / "out.txt").write_text(outcome.out, encoding="utf-8")
    run_dir = tmp_path / "run"
    shutil.copytree(kept, run_dir)
    for config in run_dir.glob("sweep/*/config.yaml"):
        config.write_text(config.read_text(encoding="utf-8").replace(str(kept), str(run_dir)), encoding="utf-8")
    return run_dir


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def results_of(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def quality(results: Any) -> Any:
    """Selects the figures of results.json that do not depend on the machine's speed."""
    return [{name: model["tasks"] for name, model in results["models"].items()}, results["gains"]]


def test_a_grid_is_run_once(swept: Path, tiny: str, exfm_cli: Cli) -> None:
    names = {f"{DIM}={dim},seed={seed}" for dim in (4, 8) for seed in (1, 2)}
    points = {path for path in (swept / "sweep").iterdir() if path.is_dir()}
    assert {path.name for path in points} == names
    for path in points:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        given_dim, given_seed = config["models"]["vm"]["embedding_dim"], config["seed"]
        assert path.name == f"{DIM}={given_dim},seed={given_seed}"
    before = {path: times(path) for path in points}
    again = exfm_cli("sweep", tiny, *GRID, f"run_dir={swept}")
    assert (again.status, again.err) == (0, "4 points, 0 to run\n")
    assert {path: times(path) for path in points} == before
    table = (swept / "out.txt").read_text(encoding="utf-8").partition("comparison:")[0]
    assert again.out == f"{table}comparison: {swept}/sweep/sweep.html\n"
    assert "embedding_dim=4" in table and "vm.control" in table


def test_points_train_their_common_models_once(tiny: str, exfm_cli: Cli, tmp_path: Path) -> None:
    weight, rate = "models.vm.transfer.0.weight", "models.vm.optimizer.dense.lr"
    grid = ("--over", f"{weight}=0.5,2", "--over", f"{rate}=0.001,0.01")
    done = exfm_cli("sweep", tiny, *grid, f"run_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    trained = [path.name for path in (tmp_path / "run").glob("sweep/*/commits/train/*")]
    # A control has its model's rate, and no transfer.
    assert {name: trained.count(name) for name in trained} == {"fm": 1, "vm": 4, "vm.control": 2}
    for number, (w, r) in enumerate([("0.5", "0.001"), ("2", "0.01")]):
        apart = exfm.load_experiment(tiny, [f"{weight}={w}", f"{rate}={r}", f"run_dir={tmp_path / str(number)}"])
        together = results_of(tmp_path / "run" / "sweep" / folder_name({weight: w, rate: r}))
        assert quality(together) == quality(exfm.run(apart))
        assert together["supervision"] == results_of(tmp_path / str(number))["supervision"]
    assert together["models"]["fm"]["trained_in"].endswith(folder_name({weight: "0.5", rate: "0.001"}))
    before = times(tmp_path / "run")
    grown = exfm_cli(
        "sweep", tiny, "--over", f"{weight}=0.5,4", "--over", f"{rate}=0.001", f"run_dir={tmp_path / 'run'}"
    )
    assert grown.status == 0 and grown.err.startswith("2 points, 1 to run")
    new = [path for path in (tmp_path / "run").glob("sweep/*/commits/train/*/*.json") if path not in before]
    assert {path.parent.name for path in new} == {"vm"}


def test_a_point_takes_over_what_a_failed_point_was_to_train(tiny: str, exfm_cli: Cli, tmp_path: Path) -> None:
    rate = "models.vm.optimizer.tables.lr"
    grid = ("--over", f"{rate}=1.0e+38,0.1", f"run_dir={tmp_path / 'run'}")
    for _ in range(2):  # the second time both were begun, and one is complete
        done = exfm_cli("sweep", tiny, *grid)
        assert done.status == 1
        assert f"{rate}=1.0e+38: failed" in done.err and f"{rate}=0.1: failed" not in done.err
    healthy = results_of(tmp_path / "run" / "sweep" / folder_name({rate: "0.1"}))
    apart = exfm.run(exfm.load_experiment(tiny, [f"{rate}=0.1", f"run_dir={tmp_path / 'apart'}"]))
    assert quality(healthy) == quality(apart) and "trained_in" not in healthy["models"]["fm"]


def without_log(text: str) -> list[str]:
    """Returns the lines without those of the runs' logs, which begin with a time."""
    return [line for line in text.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", line)]


def test_a_grown_grid_runs_new_points(swept: Path, tiny: str, exfm_cli: Cli) -> None:
    done = exfm_cli("sweep", tiny, "--over", "seed=1,3", "--over", f"{DIM}=8", f"run_dir={swept}")
    lines = without_log(done.err)
    assert done.status == 0 and lines == [
        "2 points, 1 to run",
        f"[1/1] seed=3, {DIM}=8: complete",
    ]


def test_seeds_are_one_row(swept: Path) -> None:
    summary = json.loads((swept / "sweep/sweep.json").read_text(encoding="utf-8"))
    assert summary["axes"] == {DIM: ["4", "8"], "seed": ["1", "2"]}
    for dim in ("4", "8"):
        first, second = (results_of(swept / f"sweep/{DIM}={dim},seed={seed}") for seed in (1, 2))
        row = next(
            row for row in summary["rows"] if (row["values"], row["model"], row["task"]) == ({DIM: dim}, "vm", "click")
        )
        assert row["runs"] == 2
        a, b = (run["models"]["vm"]["tasks"]["click"]["ne"] for run in (first, second))
        assert row["ne"] == pytest.approx((a + b) / 2, abs=1e-12)
        assert row["ne_std"] == pytest.approx(abs(a - b) / math.sqrt(2), abs=1e-12)
        a, b = (next(g for g in run["gains"] if g["task"] == "click")["ne_gain_percent"] for run in (first, second))
        assert a != b and row["ne_gain_percent"] == pytest.approx((a + b) / 2, abs=1e-12)
        half = 12.706204736 * abs(a - b) / 2
        assert row["interval95"] == pytest.approx([(a + b) / 2 - half, (a + b) / 2 + half], abs=1e-8)


def test_an_interrupted_point_goes_on(swept: Path, tiny: str, exfm_cli: Cli) -> None:
    folder = swept / "sweep" / f"{DIM}=8,seed=2"
    whole = results_of(folder)
    shutil.rmtree(folder)

    def interrupt(progress: Any) -> None:
        if progress.window.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exfm.run(exfm.load_experiment(tiny, [f"{DIM}=8", "seed=2", f"run_dir={folder}"]), interrupt)
    committed = times(folder / "commits")
    assert committed and not (folder / "results.json").exists()
    outcome = exfm_cli("sweep", tiny, *GRID, f"run_dir={swept}")
    assert outcome.status == 0 and outcome.err.startswith("4 points, 1 to run\n")
    assert committed.items() < times(folder / "commits").items()
    assert quality(results_of(folder)) == quality(whole)


def test_another_evaluation_is_not_taken_for_complete(swept: Path, tiny: str, exfm_cli: Cli) -> None:
    folder = swept / "sweep" / f"{DIM}=8,seed=2"
    committed = times(folder / "commits")
    assert results_of(folder)["models"]["fm"]["tasks"]["click"]["examples"] == 100
    over = ("--over", f"{DIM}=8", "--over", "seed=2", f"run_dir={swept}")
    outcome = exfm_cli("sweep", tiny, *over, "evaluation.skip=0")
    assert outcome.status == 0 and outcome.err.startswith("1 points, 1 to run\n")
    assert times(folder / "commits") == committed
    assert results_of(folder)["models"]["fm"]["tasks"]["click"]["examples"] == 200


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.soak)])
def test_a_failing_point_stops_no_other(jobs: str, swept: Path, tiny: str, exfm_cli: Cli) -> None:
    broken, other = (swept / "sweep" / f"{DIM}={dim},seed=1" for dim in (4, 8))
    for folder in (broken, other):
        (folder / "results.json").unlink()
    next((broken / "predictions/vm").iterdir()).write_bytes(b"half a file")
    outcome = exfm_cli("sweep", tiny, *GRID, "--jobs", jobs, f"run_dir={swept}")
    assert outcome.status == 1
    first, failed, complete, last = without_log(outcome.err)
    assert first == "4 points, 2 to run"
    assert failed.startswith(f"[1/2] {DIM}=4, seed=1: failed: {broken}/predictions/vm/") and "corrupt" in failed
    assert complete == f"[2/2] {DIM}=8, seed=1: complete"
    assert last.startswith("error: 1 of 4 points failed")
    summary = json.loads((swept / "sweep/sweep.json").read_text(encoding="utf-8"))
    assert [point["complete"] for point in summary["points"]] == [False, True, True, True]
    assert {row["values"][DIM]: row["runs"] for row in summary["rows"]} == {"4": 1, "8": 2}
    page = (swept / "sweep/sweep.html").read_text(encoding="utf-8")
    assert "3 of 4 points complete" in page and "corrupt" in page


@pytest.mark.soak  # processes take long to start
def test_a_subprocess_that_fails_says_why(swept: Path, tiny: str, exfm_cli: Cli) -> None:
    """With several jobs each point runs in a process, whose error is the point's."""
    broken = swept / "sweep" / f"{DIM}=4,seed=1"
    (broken / "results.json").unlink()
    next((broken / "predictions/vm").iterdir()).write_bytes(b"half a file")
    outcome = exfm_cli("sweep", tiny, *GRID, "--jobs", "2", f"run_dir={swept}")
    assert outcome.status == 1 and f"[1/1] {DIM}=4, seed=1: failed: {broken}/predictions/vm/" in outcome.err
    assert "corrupt" in outcome.err and not (broken / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--over", "seeed=1,2"], "at the point seeed=1: {file} (set on the command line): seeed: unknown key"),
        (["--over", "seeed=1,2"], "Did you mean 'seed'?"),
        (["--over", f"{DIM}=8,7"], f"at the point {DIM}=7: {{file}} (set on the command line): {DIM}: must be"),
        (["--over", "models.fm.sequence_encoder.target=[user_id],[nobody]"], "target=[nobody]: models.fm: din: target"),
        (["--over", "seed"], "write key.path=a,b"),
        (["--over", "seed="], "name at least one value"),
        (["--over", "seed=1,[2"], "brackets around a list"),
        (["--over", "seed=1,2,1"], "1 is named twice"),
        (["--over", "seed=1", "--over", "seed=2"], "seed is given twice"),
        (["--over", "seed=1,2", "seed=3"], "given both by --over and by an override"),
        (["--over", "run_dir=a,b"], "a folder of its own"),
    ],
)
def test_wrong_input_ends_before_anything_runs(
    arguments: list[str], words: str, tiny: str, tmp_path: Path, exfm_cli: Cli
) -> None:
    where = [] if "run_dir=a,b" in arguments else [f"run_dir={tmp_path / 'run'}"]
    outcome = exfm_cli("sweep", tiny, *arguments, *where)
    assert outcome.status == 2 and outcome.out == ""
    assert outcome.err.startswith("error: ") and words.format(file=tiny) in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_experiment_is_refused_before_anything_runs(swept: Path, tiny: str, exfm_cli: Cli) -> None:
    before = times(swept)
    outcome = exfm_cli("sweep", tiny, *GRID, f"run_dir={swept}", "models.vm.batch_size=50")
    assert outcome.status == 2 and f"at the point {DIM}=4, seed=1: " in outcome.err
    assert "models.vm.batch_size was 25 and is now 50" in outcome.err
    assert times(swept) == before


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("8, 16", ("8", "16")),
        ("[a,b],[a]", ("[a,b]", "[a]")),
        ("{bucket: [0, 1], of: 5},null", ("{bucket: [0, 1], of: 5}", "null")),
        ("'x,y',1e-3", ("'x,y'", "1e-3")),
        ("s3://a/b,12h", ("s3://a/b", "12h")),
        ("a=b,''", ("a=b", "''")),
    ],
)
def test_values_are_split_at_outer_commas(text: str, values: tuple[str, ...]) -> None:
    assert parse_axes([f"k={text}"]) == {"k": values}


@given(
    st.lists(
        st.dictionaries(st.text(min_size=1), st.text(max_size=200), min_size=1, max_size=3), min_size=2, max_size=4
    )
)
def test_folders_are_safe_stable_and_distinct(points: list[dict[str, str]]) -> None:
    names = [folder_name(point) for point in points]
    for name, point in zip(names, points, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9_.~%=,-]{2,120}", name)
        assert name not in (".", "..") and name == folder_name(dict(reversed(point.items())))
    distinct = {tuple(sorted(point.items())) for point in points}
    assert len(set(names)) == len(distinct)


def test_the_t_quantile_is_the_published_one() -> None:
    """Abramowitz and Stegun, table 26.10; the last from the normal distribution."""
    published = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}
    for freedom, quantile in published.items():
        assert t_quantile95(freedom) == pytest.approx(quantile, abs=5.1e-4)
    assert t_quantile95(100_000) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-4)


def made_up(gain: float | None, ne: float) -> dict[str, Any]:
    task = {"ne": ne, "auc": 0.7}
    compared = {
        "model": "vm", "control": "vm.control", "task": "click", "ne_gain_percent": gain, "interval95": [-9.0, 9.0],
        "teacher": "fm", "gain_share": None,
    }  # fmt: skip
    gains = [] if gain is None else [compared, compared | {"teacher": "other", "gain_share": 3.0}]
    return {"models": {"vm": {"tasks": {"click": task}}}, "gains": gains}


def of_points(axes: dict[str, list[str]], results: list[tuple[dict[str, str], Any]]) -> dict[str, Any]:
    return summarize("made up", axes, [PointResult(values, "folder", run) for values, run in results])


def test_five_seeds_by_the_textbook() -> None:
    gains = [0.5, 0.7, 0.4, 0.9, 0.6]
    runs = [({"seed": str(seed)}, made_up(gain, 0.8)) for seed, gain in enumerate(gains)]
    (row,) = of_points({"seed": [str(seed) for seed in range(5)]}, runs)["rows"]
    mean = sum(gains) / 5
    deviation = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / 4)
    assert row["ne_gain_percent"] == pytest.approx(mean, abs=1e-12) and row["ne_std"] == 0
    assert row["ne_gain_percent_std"] == pytest.approx(deviation, abs=1e-12)
    half = 2.7764451 * deviation / math.sqrt(5)
    assert row["interval95"] == pytest.approx([mean - half, mean + half], abs=1e-7)
    assert row["gain_share"] is None and row["gain_share_std"] is None


def pair(gain: float | None) -> dict[str, Any]:
    nes = {"ne": 0.8, "baseline_ne": 0.8 / (1 - gain / 100)} if gain is not None else {"ne": None, "baseline_ne": None}
    bounds = None if gain is None else [-9.0, 9.0]
    names = {"model": "vm", "baseline": "alone", "task": "click", "examples": 0 if gain is None else 50}
    return {**names, **nes, "ne_gain_percent": gain, "interval95": bounds}


def shown(summary: dict[str, Any], table: Callable[..., Any] = sweep_comparison_table) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(table(summary))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_pairs_are_averaged_seed_by_seed() -> None:
    gains = [1.0, 2.0, 4.0, None]
    runs = [({"seed": str(seed)}, made_up(0.5, 0.8) | {"comparisons": [pair(gain)]}) for seed, gain in enumerate(gains)]
    summary = of_points({"seed": ["0", "1", "2", "3"]}, runs)
    (row,) = summary["comparisons"]
    assert (row["runs"], row["runs_compared"], row["examples"]) == (4, 3, 150)
    half = 4.30265273 * statistics.stdev([1, 2, 4]) / math.sqrt(3)
    assert row["ne_gain_percent"] == pytest.approx(7 / 3)
    assert row["interval95"] == pytest.approx([7 / 3 - half, 7 / 3 + half], abs=1e-7)
    assert "3 of 4" in shown(summary) and "+2.33%" in shown(summary) and "+2.33%" in render_sweep(summary)


def test_pairs_without_a_common_example_are_said() -> None:
    runs = [({"seed": seed}, made_up(0.5, 0.8) | {"comparisons": [pair(None)]}) for seed in "12"]
    summary = of_points({"seed": ["1", "2"]}, runs)
    assert "no common example" in shown(summary) and "no common example" in render_sweep(summary)
    without = of_points({"seed": ["1"]}, [({"seed": "1"}, made_up(0.5, 0.8))])
    assert without["comparisons"] == [] and sweep_comparison_table(without) is None


def of_teacher(fm: float, vm: float, examples: int = 100) -> dict[str, Any]:
    """Results of a VM that an FM has taught, beside a model without a teacher."""
    models = {
        name: {"tasks": {"click": {"ne": ne, "auc": 0.7, "examples": examples}}}
        for name, ne in (("fm", fm), ("vm", vm), ("alone", 0.9))
    }
    return {"models": models, "gains": [], "supervision": {"fm": {"vm": {}}, "vendor": {"vm": {}}}}


def grid_of(nes: dict[tuple[str, str, str], dict[str, Any] | None]) -> dict[str, Any]:
    """A summary of results by the FM's size, the VM's size and the seed."""
    keys = ("fm.dim", "vm.dim", "seed")
    runs = [(dict(zip(keys, key, strict=True)), results) for key, results in nes.items()]
    return of_points(
        {name: list(dict.fromkeys(key[position] for key in nes)) for position, name in enumerate(keys)}, runs
    )


def test_a_transfer_ratio_is_paired_by_seed_and_by_all_other_axes() -> None:
    fms = {("4", "1"): 0.80, ("4", "2"): 0.82, ("8", "1"): 0.78, ("8", "2"): 0.802}
    vms = {"4": {"a": (0.85, 0.86), "b": (0.81, 0.83)}, "8": {"a": (0.84, 0.849), "b": (0.80, 0.828)}}
    summary = grid_of(
        {
            (dim, size, seed): of_teacher(fms[dim, seed], vms[dim][size][int(seed) - 1])
            for dim in "48" for size in "ab" for seed in "12"
        }
    )  # fmt: skip
    rows = {row["values"]["vm.dim"]: row for row in summary["transfer_ratios"]}
    assert [(row["teacher"], row["model"], row["runs"]) for row in summary["transfer_ratios"]] == [("fm", "vm", 2)] * 2
    for size, row in rows.items():
        assert (row["values"], row["against"]) == ({"vm.dim": size, "fm.dim": "8"}, {"vm.dim": size, "fm.dim": "4"})
        teacher = [100 * (1 - fms["8", seed] / fms["4", seed]) for seed in "12"]
        student = [100 * (1 - new / old) for old, new in zip(vms["4"][size], vms["8"][size], strict=True)]
        assert row["teacher_ne_gain_percent"] == pytest.approx(sum(teacher) / 2)
        half = 12.706204736 * abs(teacher[0] - teacher[1]) / 2
        assert row["teacher_interval95"] == pytest.approx([sum(teacher) / 2 - half, sum(teacher) / 2 + half], abs=1e-7)
        assert row["transfer_ratio"] == pytest.approx(sum(student) / sum(teacher))
    assert rows["a"]["transfer_ratio"] != rows["b"]["transfer_ratio"]
    shown_ratio = f"{rows['a']['transfer_ratio']:.2f}"
    assert shown_ratio in shown(summary, sweep_ratio_table) and shown_ratio in render_sweep(summary)


@pytest.mark.parametrize(
    ("second", "rows"),
    [
        ({"1": of_teacher(0.78, 0.84), "2": of_teacher(0.85, 0.84)}, 1),  # the teacher's gain may be nothing
        ({"1": of_teacher(0.78, 0.84), "2": None}, 1),  # a single seed
        ({"1": of_teacher(0.80, 0.84), "2": of_teacher(0.82, 0.84)}, 0),  # the same teacher
        ({"1": of_teacher(0.78, 0.84, 99), "2": of_teacher(0.80, 0.84, 99)}, 0),  # other examples
    ],
)
def test_there_is_no_transfer_ratio_to_noise(second: dict[str, Any], rows: int) -> None:
    first = {"1": of_teacher(0.80, 0.85), "2": of_teacher(0.82, 0.86)}
    points = {("4", "a", seed): run for seed, run in first.items()} | {
        ("8", "a", seed): run for seed, run in second.items()
    }
    summary = grid_of(points)
    assert [row["transfer_ratio"] for row in summary["transfer_ratios"]] == [None] * rows
    assert (sweep_ratio_table(summary) is None) == (rows == 0)
    assert rows == 0 or ("two seeds or more" in shown(summary, sweep_ratio_table)) == (second["2"] is None)
    render_sweep(summary)


def test_a_single_run_keeps_its_own_interval() -> None:
    (row,) = of_points({"a": ["1"]}, [({"a": "1"}, made_up(0.5, 0.8))])["rows"]
    assert row["interval95"] == [-9.0, 9.0] and row["ne_std"] is None


def test_the_plot_is_over_the_first_numbers() -> None:
    axes = {"model.kind": ["x", "y"], "seed": ["1"], "rate": ["1e-3", "0.1"]}
    runs = [({"model.kind": k, "seed": "1", "rate": r}, made_up(0.5, 0.8)) for k in "xy" for r in axes["rate"]]
    drawn = draw_series(of_points(axes, runs))
    assert drawn is not None and drawn.numeric and drawn.ticks == {"1e-3": 0.001, "0.1": 0.1}
    assert [series.name for series in drawn.series] == ["vm, kind=x", "vm, kind=y"]
    assert drawn.series[0].points == [(0.001, 0.5, (-9.0, 9.0)), (0.1, 0.5, (-9.0, 9.0))]


def test_without_numbers_x_is_a_choice_and_without_gains_y_is_the_ne() -> None:
    runs = [({"a": value, "seed": seed}, made_up(None, float(seed))) for value in ("[p]", "[p,q]") for seed in "13"]
    drawn = draw_series(of_points({"a": ["[p]", "[p,q]"], "seed": ["1", "3"]}, runs))
    assert drawn is not None and not drawn.numeric and drawn.y_label.startswith("NE, ")
    spread = math.sqrt(2)
    assert [point[:2] for point in drawn.series[0].points] == [(0.0, 2.0), (1.0, 2.0)]
    assert all(point[2] == pytest.approx((2 - spread, 2 + spread)) for point in drawn.series[0].points)


def test_the_page_is_self_contained_and_safe() -> None:
    evil = "<script>x</script>"
    axes = {"k": [evil, "$\\frac{$"]}
    summary = of_points(axes, [({"k": value}, made_up(0.25, 0.8)) for value in axes["k"]])
    page = render_sweep(summary)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"https?:|@import|url\((?!#)| on\w+=", page)
    assert "+0.25%" in page and "\u22129.00% to +9.00%" in page
    plot = re.search(r"<figure>.*?</figure>", page, re.DOTALL)
    assert plot is not None and not re.search(r"#[0-9a-f]{6}", plot[0]), "colours are the page's own"
    picture = render_png(summary)
    assert picture is not None and picture.startswith(b"\x89PNG")


def test_with_every_point_failed_there_is_still_a_page() -> None:
    summary = summarize("none", {"k": ["1"]}, [PointResult({"k": "1"}, "k=1", None, "no disk")])
    assert "0 of 1 points complete" in render_sweep(copy.deepcopy(summary))
    assert summary["rows"] == [] and render_png(summary) is None
