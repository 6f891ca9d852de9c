"""`exfm plan` against sums by hand, against what processes really keep and send, and against its own advice."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import exfm
from exfm.interfaces.layout import Cluster
from exfm.modeling.build import build_model
from exfm.planning.activations import _full_batch, activation_bytes
from exfm.planning.needs import lengths_of
from exfm.planning.plan import as_dict, plan
from exfm.reporting.plan_table import spans
from tests.planning import placed_worker
from tests.processes import torchrun

ROOT = Path(__file__).parents[2]
ROWS = {"user": 10_000, "item": 40_000, "tags": 60, "surface": 8}
DIM, BATCH, TAGS, EVENTS = 8, 64, 10, 20


def tree(**parallel: Any) -> dict[str, Any]:
    """One model; the history's items share the candidate's table."""
    features = [
        {"name": "price", "kind": "dense"},
        {"name": "user", "kind": "categorical", "rows": ROWS["user"]},
        {"name": "item", "kind": "categorical", "rows": ROWS["item"], "table": "item"},
        {"name": "surface", "kind": "categorical", "rows": ROWS["surface"]},
        {"name": "tags", "kind": "multi_valued", "rows": ROWS["tags"]},
        {
            "name": "history",
            "kind": "sequence",
            "max_length": EVENTS,
            "fields": [{"name": "item", "column": "items", "rows": ROWS["item"], "table": "item"}],
        },
    ]
    source = {"name": "parquet", "path": "nowhere", "features": features, "labels": [{"name": "click"}]}
    source |= {"example_id": "id", "event_time": "time"}
    model = {
        "backbone": {"name": "wukong", "layers": 2, "fmb_hidden": [32], "head_hidden": [16]},
        "sequence_encoder": {"name": "din"},
        "embedding_dim": DIM,
        "batch_size": BATCH,
    }
    return {
        "name": "planned",
        "stream": {"source": source, "window": "1d"},
        "models": {"fm": model},
        "parallel": {"name": "single", **parallel},
    }


@pytest.fixture
def planned(write: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """The plan of the one model as JSON."""

    def made(processes: int, group: int | None, *overrides: str, memory: int = 10**9, **parallel: Any) -> Any:
        experiment = exfm.load_experiment(write(tree(**parallel)), overrides)
        return as_dict(plan(experiment, Cluster(processes, min(processes, 2), memory, group)))

    return made


@pytest.mark.parametrize(
    ("optimizer", "state", "processes", "group", "parallel"),
    [
        ("adagrad", DIM, 1, None, {"name": "single"}),
        ("sgd", 0, 4, None, {"name": "ddp"}),
        ("rowwise_adagrad", 1, 4, 2, {"name": "hsdp"}),
        ("adagrad", DIM, 4, 2, {"name": "hsdp_2d", "device": "cpu", "sharding": ["table_wise"]}),
        ("rowwise_adagrad", 1, 8, 4, {"name": "hsdp_2d", "sharding": ["row_wise"]}),
        ("sgd", 0, 8, 4, {"name": "hsdp_2d", "sharding": ["table_row_wise"]}),
    ],
)
def test_tables_take_what_they_are(
    planned: Any, optimizer: str, state: int, processes: int, group: int | None, parallel: dict[str, Any]
) -> None:
    found = planned(processes, group, f"models.fm.optimizer.tables.name={optimizer}", **parallel)
    memory, copies = found["models"]["fm"]["memory"], found["sharding_group"] if parallel["name"] == "hsdp" else 1
    assert sum(memory["tables"]) == copies * sum(ROWS.values()) * DIM * 4
    assert sum(memory["table_optimizer"]) == copies * sum(ROWS.values()) * state * 4
    assert found["models"]["fm"]["parameters"]["sparse"] == sum(ROWS.values()) * DIM
    needed = [sum(sizes) for sizes in zip(*memory.values(), strict=True)]
    assert found["needed_bytes"] == needed
    # S (M - 1) / T of arXiv 2508.03854.
    size, groups = sum(ROWS.values()) * (DIM + state) * 4, processes // found["sharding_group"]
    if parallel["name"] == "hsdp_2d":
        assert found["models"]["fm"]["replication_bytes"] == size * (groups - 1) // processes


def test_columns_have_a_row_wise_sum_each(planned: Any) -> None:
    cut = {"name": "hsdp_2d", "device": "cpu", "tables": {"user": {"sharding": ["column_wise"], "columns": 4}}}
    memory = planned(2, 2, "models.fm.optimizer.tables.name=rowwise_adagrad", **cut, sharding=["table_wise"])
    states = sum(memory["models"]["fm"]["memory"]["table_optimizer"])
    assert states == (sum(ROWS.values()) + ROWS["user"]) * 4, "two shards of four columns, each with its own sums"


@pytest.mark.parametrize(
    ("sharding", "wire"),
    [
        ("table_wise", ("fp32", 4)),
        ("column_wise", ("bf16", 2)),
        ("row_wise", ("fp8", 1)),
        ("table_row_wise", ("fp16", 2)),
    ],
)
def test_what_is_sent_by_pairs_of_processes(planned: Any, sharding: str, wire: tuple[str, int]) -> None:
    """Each process's bags are summed where rows lie; each part of a sum that crosses to another process is counted."""
    group, local = 4, 2
    found = planned(4, 4, name="hsdp_2d", sharding=[sharding], communication=wire[0])["models"]["fm"]
    own = BATCH // 4
    # A candidate is a bag, an event is one; keys of a collection have equally many. Items lie in the other one.
    bags = {"user": own, "surface": own, "tags": own, "item": own + own * EVENTS}
    ids = {"user": own, "surface": own, "tags": own * TAGS, "item": own + own * EVENTS}
    rows, asked, inside = 0, 0.0, 0
    for table in found["tables"]:
        name, owners = table["table"], [shard["process"] for shard in table["shards"]]
        for shard, process in product(table["shards"], range(group)):
            away = shard["process"] != process
            part = shard["rows"] / ROWS[name]
            asked += away * (ids[name] * part * 8 + bags[name] * 4)
            if sharding == "table_row_wise":
                # Of another machine one process sends the sum, in the end.
                rows += (process // local != owners[0] // local) * bags[name] * DIM * wire[1] / len(owners)
            else:
                rows += away * bags[name] * shard["columns"] * wire[1]
        if sharding == "table_row_wise":
            inside += (len(owners) - 1) * group * bags[name] * DIM * wire[1]
    sent = {one["name"].partition(":")[0]: sum(one["sent_bytes"]) for one in found["exchanges"]}
    assert sent["looked-up rows"] == pytest.approx(rows, abs=8)
    assert sent["gradients of looked-up rows"] == pytest.approx(rows, abs=8)
    assert sent["ids"] == pytest.approx(asked, abs=8)
    assert sent.get("parts of rows and their gradients", 0) == pytest.approx(2 * inside, abs=8)


@pytest.mark.parametrize(("name", "group"), [("ddp", None), ("hsdp", 2), ("hsdp_2d", 2)])
def test_gradients_that_add_up_are_averaged_once(planned: Any, name: str, group: int | None) -> None:
    found, added = (
        planned(4, group, f"models.fm.optimizer.dense.accumulate={batches}", name=name)["models"]["fm"]
        for batches in (1, 4)
    )
    every = {one["name"]: one["every"] for one in added["exchanges"]}
    averaged = [told for told in every if "gradients" in told and "dense" in told and "all-reduce" in told]
    assert len(averaged) == (1 if name == "ddp" else 2) and all(every[told] == 4 for told in averaged)
    assert all(every[told] in (1, 100) for told in every if told not in averaged)
    assert sum(added["sent_bytes_per_step"]) < sum(found["sent_bytes_per_step"])


@pytest.mark.parametrize("name", ["ddp", "hsdp", "hsdp_2d"])
def test_every_process_is_told_the_ids_that_are_managed(planned: Any, name: str) -> None:
    managed = [f"stream.source.features.{place}.ids=managed" for place in ("2", "5.fields.0")]
    with_rows, hashed = (planned(4, None, *overrides, name=name)["models"]["fm"] for overrides in (managed, []))
    told = [one["sent_bytes"] for one in with_rows["exchanges"] if one["name"] == "ids of managed tables: all-gather"]
    assert told == [[BATCH // 4 * (1 + EVENTS) * 8 * 3] * len(told[0])]
    assert len(with_rows["exchanges"]) == len(hashed["exchanges"]) + 1
    kept = [sum(found["memory"]["dense"]) for found in (with_rows, hashed)]
    assert kept[0] - kept[1] == (ROWS["item"] * 24 + 8) * len(told[0]), "a map on every process"


PLACED = {
    "replicas": ("parallel={name: hsdp_2d, device: cpu, replicas: 2, sharding: [table_wise]}", 2),
    "one group": ("parallel={name: hsdp_2d, device: cpu, sharding: [column_wise]}", 4),
}
"""A plan for four processes, and how many of them share a copy of the model."""


STARTED, LIKE = (5, 30_000, 7, 39_999), (39_000, 12, 13, 25_000)
"""Rows that start and those that they take after, on the same half of a table or not."""
EACH = [[parallel, "models.fm.optimizer.tables.name=rowwise_adagrad"] for parallel, _ in PLACED.values()]


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes have found, in a folder."""
    folder = tmp_path_factory.mktemp("placed")
    path = folder / "planned.yaml"
    path.write_text(yaml.safe_dump(tree()))
    torchrun(placed_worker.main, str(path), EACH, [EACH[0], STARTED, LIKE], folder, processes=4)
    return folder


def test_rows_of_tables_that_are_cut_by_rows_start_anew(placed: Path) -> None:
    found = load_file(placed / "started.safetensors")
    before = {name.removeprefix("before/"): one for name, one in found.items() if name.startswith("before/")}
    assert sum(one.numel() for one in before.values()) > sum(ROWS.values()) * (DIM + 1)
    changed = 0
    for name, expected in before.items():
        if "table_item" in name:
            weights = expected.shape == (ROWS["item"], DIM)
            expected[list(STARTED)] = expected[list(LIKE)] if weights else 0.0
            changed += 1
        assert torch.equal(found[f"after/{name}"], expected), name
    assert changed == 2, "the weights, and a number for each row"


def test_processes_keep_and_send_what_is_planned(placed: Path) -> None:
    measured = [json.loads((placed / f"{process}.json").read_text()) for process in range(4)]
    for number, (case, (_, group)) in enumerate(PLACED.items()):
        experiment = exfm.load_experiment(str(placed / "planned.yaml"), EACH[number])
        found = as_dict(plan(experiment, Cluster(4, 4, 128 * 10**9)))
        assert found["sharding_group"] == group
        model = found["models"]["fm"]
        rows = [one for one in model["exchanges"] if "looked-up rows" in one["name"]]
        for process in range(4):
            real = measured[process][number]
            expected = {name: model["memory"][name][process % group] for name in real if name != "rows"}
            expected["rows"] = sum(one["sent_bytes"][process % group] for one in rows)
            assert real == expected, case


@pytest.mark.parametrize("overrides", [[], ["models.fm.precision=bf16"], ["models.fm.activation_checkpointing=true"]])
@pytest.mark.parametrize("encoder", ["din", "transformer"])
def test_activations_are_those_of_a_real_forward_pass(
    overrides: list[str], encoder: str, write: Callable[..., str]
) -> None:
    experiment = exfm.load_experiment(write(tree()), [*overrides, f"models.fm.sequence_encoder.name={encoder}"])
    schema, arm, lengths = experiment.schema, experiment.arms[0], lengths_of(experiment.schema, {})
    with torch.device("meta"):
        model = build_model(arm, schema)
    counted = activation_bytes(model, schema, 16, lengths)
    real = build_model(arm, schema)
    experiment.config.parallel.build().parallelize(real, arm.config.optimizer.tables)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in real.parameters()}
    kept: dict[int, Tensor] = {}
    inside = [False]

    def pack(tensor: Tensor) -> Tensor:
        if not inside[0] and tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    for part in (real.featurizer.pooled, real.featurizer.events):  # FBGEMM's own are not activations
        part.bags.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True))
        part.bags.register_forward_hook(lambda *_: inside.__setitem__(0, False))
    batch = real.narrow(_full_batch(schema, 16, lengths))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        real(batch)
    # Empty tensors have no address, and a storage of integers may come to lie where one of floats has.
    assert counted == pytest.approx(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), rel=0.02)


def test_a_foundation_model_of_3t_parameters_fits_on_4096_devices(exfm_cli: Any) -> None:
    config = str(ROOT / "examples/plan/fm-3t.yaml")
    options = ["--world-size", "4096", "--sharding-group", "256", "--hbm-gb", "80", "--json"]
    found = json.loads(exfm_cli("plan", config, *options).out)
    fm = found["models"]["fm"]
    assert found["fits"] and fm["parameters"]["sparse"] == 3_200_000_000_000
    assert sum(fm["memory"]["tables"]) == 12_800_000_000_000 and len(fm["memory"]["tables"]) == 256
    assert max(fm["memory"]["tables"]) < 50.1e9 and max(found["needed_bytes"]) < 68e9
    assert fm["replication_bytes"] == (12_800_000_000_000 + 64 * 195_312_500 * 4) * 15 // 4096


def test_what_is_said_to_fit_does(write: Callable[..., str], exfm_cli: Any) -> None:
    path = write(tree(name="hsdp_2d", sharding=["row_wise"], replicas=4))
    options = ["--world-size", "8", "--hbm-gb", "0.0018", "--per-machine", "2", "--json"]
    outcome = exfm_cli("plan", path, *options)
    assert outcome.status == 1 and outcome.err.startswith("does not fit: ")
    remedies = json.loads(outcome.out)["remedies"]
    assert any("--sharding-group" in one["change"] for one in remedies)
    assert any("rowwise_adagrad" in one["change"] for one in remedies)
    for one in (remedies[0], remedies[-1]):
        again = exfm_cli("plan", path, *options, *shlex.split(one["change"]))
        assert again.status == 0 and max(json.loads(again.out)["needed_bytes"]) == one["needed_bytes"]


def test_the_table_names_every_table_and_how_to_run_it(write: Callable[..., str], exfm_cli: Any) -> None:
    path = write(tree(name="hsdp_2d", sharding=["table_row_wise"]))
    shown = exfm_cli("plan", path, "--world-size", "16", "--sharding-group", "4", "--per-machine", "2")
    assert shown.status == 0 and "4 sharding groups of 4" in shown.out
    assert all(name in shown.out for name in ROWS) and "table_row_wise" in shown.out
    assert "to run it so: parallel.replicas=4" in shown.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--world-size", "2"], "single computes in one process, and 2 are planned for"),
        (["--world-size", "4", "--sharding-group", "2", "parallel.name=ddp"], "there are no groups of 2"),
        (["--world-size", "4", "--sharding-group", "3", "parallel.name=hsdp"], "groups of 3; allowed: 1, 2, 4"),
        (["--world-size", "4", "parallel={name: hsdp_2d, replicas: 3}"], "4 processes do not form 3 equal groups"),
        (["--world-size", "1", "--model", "fn"], "--model: no model is called 'fn'"),
        (["--world-size", "1", "--length", "histori=3"], "no multi-valued feature or sequence 'histori'. Did you mean"),
        (["--world-size", "1", "--length", "history=21"], "--length history=21: the model keeps the newest 20 events"),
        (["--world-size", "1", "--length", "history"], "--length history: write NAME=N"),
    ],
)
def test_what_cannot_be_planned_is_the_users_input(
    arguments: list[str], words: str, write: Callable[..., str], exfm_cli: Any
) -> None:
    outcome = exfm_cli("plan", write(tree()), *arguments)
    assert outcome.status == 2 and outcome.out == "" and words in outcome.err


def test_a_plan_that_does_not_tell_is_named(
    write: Callable[..., str], exfm_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exfm.parallel import SingleProcessPlan

    monkeypatch.delattr(SingleProcessPlan, "estimate_layout")
    outcome = exfm_cli("plan", write(tree()), "--world-size", "1")
    assert outcome.status == 2 and "parallel: single does not tell where it would put a model" in outcome.err


def test_processes_in_a_row_are_one_span() -> None:
    assert spans([0, 1, 2, 5, 7, 8], 9) == "0-2, 5, 7-8"
    assert spans([1, 0, 0], 2) == "all" and spans([0], 1) == "0" and spans([3], 4) == "3"
