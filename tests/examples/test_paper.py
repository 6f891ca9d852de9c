"""Scenarios of examples/paper: all are valid, and the simulated ones do, on a few rows, what they are about."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import exfm
from exfm.experiment.sweep import parse_axes, plan_sweep
from exfm.transfer.build import check_models

FOLDER = Path(__file__).parents[2] / "examples" / "paper"
FILES = sorted(FOLDER.glob("*.yaml"))
SYNTHETIC = [file.stem for file in FILES if "name: synthetic_ads" in file.read_text(encoding="utf-8")]
SMALL = [
    *("stream.source.days=2", "stream.source.rows_per_day=60", "stream.source.users=20", "stream.source.ads=24"),
    *("stream.source.advertisers=5", "stream.chunk_rows=512", "evaluation.replicates=100"),
]
DELAYED = ("stream.source.days=1", "models.fm.supervision.delay=12h")
OWN = {
    "ah_ablation": ("stream.source.days=3",),  # a distillation head moves the trunk from the second batch on
    "multi_task": ("stream.source.days=3",),  # conversions are known a day late
    "delay_sweep": DELAYED,
    "adapter_delay": DELAYED,
}
WINDOW_S = 6 * 3600


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results of a scenario on a few rows, each run once for all tests."""
    runs: dict[tuple[str, ...], Any] = {}

    def of(scenario: str, *overrides: str) -> Any:
        key = (scenario, *overrides)
        if key not in runs:
            runs[key] = exfm.run(load(scenario, *overrides, f"run_dir={tmp_path_factory.mktemp(scenario) / 'run'}"))
        return runs[key]

    return of


def load(scenario: str, *overrides: str) -> exfm.Experiment:
    return exfm.load_experiment(str(FOLDER / f"{scenario}.yaml"), [*SMALL, *OWN.get(scenario, ()), *overrides])


def command(file: Path) -> list[str]:
    """The command in the comment at a file's head."""
    (line,) = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#   exfm ")]
    return shlex.split(line.removeprefix("#"))


def movielens(folder: Path) -> str:
    for name, text in {
        "ratings.dat": "1::10::5::300\n2::10::3::100\n",
        "users.dat": "1::F::1::10::48067\n2::M::56::16::98107\n",
        "movies.dat": "10::Heat (1995)::Action\n",
    }.items():
        (folder / name).write_text(text, encoding="latin-1")
    return str(folder)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_at_the_head_is_valid_at_every_point(file: Path, tmp_path: Path) -> None:
    exfm_, verb, path, *arguments = command(file)
    assert (exfm_, verb, path) == ("exfm", "sweep", f"examples/paper/{file.name}")
    places = [place for place, argument in enumerate(arguments) if argument == "--over"]
    over = [arguments[place + 1] for place in places]
    assert over.pop() == "seed=1,2,3,4,5"
    overrides = [f"run_dir={tmp_path / 'run'}"]
    if len(arguments) > 2 * len(places):
        assert arguments[2 * len(places) :] == ["stream.source.path=FOLDER"]
        overrides.append(f"stream.source.path={movielens(tmp_path)}")
    if over:
        assert plan_sweep(str(file), parse_axes(over), overrides).points
    else:
        check_models(exfm.load_experiment(str(file), overrides))


def test_the_page_lists_every_file_with_its_command() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [file.name for file in FILES if f"[{file.stem}]({file.name})" not in page] == []
    assert [file.name for file in FILES if f"`{shlex.join(command(file))}`" not in page] == []


@pytest.mark.parametrize("scenario", SYNTHETIC)
def test_every_vm_has_a_gain_over_its_control(scenario: str, results: Any) -> None:
    found = results(scenario)
    arms = load(scenario).arms
    expected = {
        (arm.name, task) for arm in arms if arm.control is not None for task in found["models"][arm.name]["tasks"]
    }
    assert expected
    gains = {(entry["model"], entry["task"]): entry for entry in found["gains"]}
    assert set(gains) == expected
    taught = [arm.name for arm in arms if arm.teachers]
    assert all(found["supervision"][teacher][name]["hit_rate"] for name in taught for teacher in _teachers(arms, name))


def _teachers(arms: Any, name: str) -> tuple[str, ...]:
    return next(arm.teachers for arm in arms if arm.name == name)


def _but_for_a_batch(hit_rate: float, batches: int = 2) -> bool:
    """Whether a teacher has supervised all batches but its first, of which it had learned nothing."""
    return abs(hit_rate - (1 - 1 / batches)) < 0.15


def test_stages_grow_in_cost_and_in_what_they_see(results: Any) -> None:
    models = results("cross_stage")["models"]
    retrieval, early, late, teacher = (models[name] for name in ("retrieval", "early", "late", "fm"))
    costs = [model["flops_per_example"] for model in (retrieval, early, late, teacher)]
    assert all(small < large for small, large in pairwise(costs))
    assert set(retrieval["tasks"]["click"]["recall_at"]) == {"10", "50"}
    config = load("cross_stage").config.models
    seen = [set(config[name].features or ()) for name in ("retrieval", "early", "late")]
    assert seen[0] < seen[1] < seen[2]


def test_each_example_is_routed_to_its_domain_and_the_rest_to_the_fm(results: Any) -> None:
    found = results("cross_domain")
    supervision = found["supervision"]
    rates = [supervision[name]["everywhere"]["hit_rate"] for name in ("first_fm", "second_fm", "fm")]
    assert 0 < rates[0] < 1 and 0 < rates[1] < 1 and rates[0] + rates[1] < 1 and _but_for_a_batch(rates[2])
    (labels,) = supervision["first_fm"]["everywhere"]["soft_labels"]
    assert labels["examples"] == found["models"]["everywhere"]["tasks"]["click"]["examples"]
    assert _but_for_a_batch(supervision["first_fm"]["first"]["hit_rate"])
    assert _but_for_a_batch(supervision["second_fm"]["second"]["hit_rate"])
    assert "first" not in supervision["fm"] and _but_for_a_batch(supervision["fm"]["first_direct"]["hit_rate"])


def test_a_conversions_second_head_learns_clicks(results: Any) -> None:
    found = results("multi_task")
    assert set(found["models"]["both"]["tasks"]) == {"click", "conversion"}
    assert set(found["models"]["conversion_by_click"]["tasks"]) == {"conversion"}
    same, mapped = (
        found["models"][name]["tasks"]["conversion"]["ne"] for name in ("conversion", "conversion_by_click")
    )
    labels = found["supervision"]["fm"]["conversion_by_click"]["soft_labels"]
    rates = {entry["transfer"]: entry["calibration"] for entry in labels if entry["task"] == "conversion"}
    assert same != mapped and set(rates) == {0, 1}
    assert rates[1] > rates[0], "clicks are more frequent than conversions"


def test_representations_per_task_cost_as_much_as_a_common_one(results: Any) -> None:
    outcome = results("multi_task")
    costs = {name: outcome["models"][name]["flops_per_example"] for name in ("both", "both_mmoe", "both_ple")}
    assert all(abs(cost / costs["both"] - 1) < 0.02 for cost in costs.values())
    compared = {(entry["model"], entry["baseline"]) for entry in outcome["comparisons"]}
    assert compared == {("both_mmoe", "both"), ("both_ple", "both")}


def test_a_delay_makes_supervision_older(results: Any) -> None:
    runs = [results("delay_sweep"), results("delay_sweep", "models.fm.supervision.delay=0s")]
    old, fresh = (run["supervision"]["fm"]["auxiliary"] for run in runs)
    assert fresh["age_s"] < WINDOW_S < 2 * WINDOW_S < old["age_s"] < 3 * WINDOW_S
    # A snapshot of the first window is twelve hours old when the fourth begins.
    assert [window["hit_rate"] for window in old["windows"]] == [0, 0, 0, 1]
    assert _but_for_a_batch(fresh["hit_rate"], batches=4)


@pytest.mark.parametrize("scenario", ["delay_sweep", "adapter_delay"])
def test_figures_cover_supervised_examples_alone(scenario: str) -> None:
    file = FOLDER / f"{scenario}.yaml"
    ((key, delays),) = parse_axes([command(file)[4]]).items()
    config = exfm.load_experiment(str(file), [f"{key}={delays[-1]}"]).config
    skipped_s = config.evaluation.skip * config.stream.source.config.days * 24 * 3600
    assert config.models["fm"].supervision.delay.total_seconds() + WINDOW_S <= skipped_s


def test_only_the_adapters_students_learn_a_corrected_label(results: Any) -> None:
    students = results("adapter_delay")["supervision"]["fm"]
    corrected = {
        name for name, found in students.items() if "corrected" in {entry["label"] for entry in found["soft_labels"]}
    }
    seeing = {"adapter_domain", "adapter_seeing"}
    assert corrected == {"adapter", "adapter_shared", "adapter_alone", "published", *seeing}


def test_the_fm_grows_and_the_vm_does_not(results: Any) -> None:
    ((key, sizes),) = parse_axes([command(FOLDER / "fm_size.yaml")[4]]).items()
    assert len(sizes) >= 4
    default = str(load("fm_size").config.models["fm"].embedding_dim)
    assert sizes.index(default) + 1 < len(sizes)
    runs = [results("fm_size"), results("fm_size", f"{key}={sizes[sizes.index(default) + 1]}")]
    of_fm, of_vm = ([run["models"][name]["flops_per_example"] for run in runs] for name in ("fm", "vm"))
    assert of_vm[0] == of_vm[1] and of_fm[1] > 1.5 * of_fm[0]


def test_each_ablation_turns_one_thing_off(results: Any) -> None:
    models = load("ah_ablation").config.models
    fields = {name: model.transfer[0].config.model_dump() for name, model in models.items() if model.transfer}
    named = {name: of_one for name, of_one in fields.items() if name != "default"}
    off = {
        name: {key for key, value in of_one.items() if value == 1 != fields["full"][key]}
        for name, of_one in named.items()
    }
    alone = {f"no_{key}": {key} for key in ("label_scale", "gradient_scale", "weight")}
    assert off == {"full": set(), **alone, "none": set.union(*alone.values()), "circulating": set()}
    entries = results("ah_ablation")["gains"]
    assert {entry["control"] for entry in entries} == {"full.control"}
    gains = {entry["model"]: entry["ne_gain_percent"] for entry in entries}
    # Weight times gradient scale is what the trunk gets; the head's gradient differs by a factor, which Adam takes out.
    assert gains.pop("no_weight") == pytest.approx(gains["no_gradient_scale"], abs=1e-4)
    assert gains.keys() | {"no_weight"} == fields.keys() and len(set(gains.values())) == len(gains)
