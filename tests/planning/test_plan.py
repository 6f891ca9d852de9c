"""`exfm plan` agrees with sums by hand, with the bytes that processes hold and send, and with its advice."""

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
from exfm.layers.flops import count_flops
from exfm.modeling.build import build_model
from exfm.planning.activations import _full_batch, forward_cost
from exfm.planning.cluster_plan import as_dict, plan
from exfm.planning.needs import list_lengths
from exfm.reporting.plan_table import spans
from tests.planning import placed_worker
from tests.processes import torchrun

ROOT = Path(__file__).parents[2]
ROWS = {"user": 10_000, "item": 40_000, "tags": 60, "surface": 8}
DIM, BATCH, TAGS, EVENTS = 8, 64, 10, 20


def tree(**parallel: Any) -> dict[str, Any]:
    """Configures a model; the history's items share the candidate's table."""
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
    """Returns a function that plans the model, and returns the plan as JSON."""

    def plan_model(processes: int, group: int | None, *overrides: str, memory: int = 10**9, **parallel: Any) -> Any:
        experiment = exfm.load_experiment(write(tree(**parallel)), overrides)
        return as_dict(plan(experiment, Cluster(processes, min(processes, 2), memory, group)))

    return plan_model


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
def test_tables_take_the_bytes_of_their_numbers(
    planned: Any, optimizer: str, state: int, processes: int, group: int | None, parallel: dict[str, Any]
) -> None:
    described = planned(processes, group, f"models.fm.optimizer.tables.name={optimizer}", **parallel)
    memory = described["models"]["fm"]["memory"]
    copies = described["sharding_group"] if parallel["name"] == "hsdp" else 1
    assert sum(memory["tables"]) == copies * sum(ROWS.values()) * DIM * 4
    assert sum(memory["table_optimizer"]) == copies * sum(ROWS.values()) * state * 4
    assert described["models"]["fm"]["parameters"]["sparse"] == sum(ROWS.values()) * DIM
    needed = [sum(sizes) for sizes in zip(*memory.values(), strict=True)]
    assert described["needed_bytes"] == needed
    # S (M - 1) / T of arXiv 2508.03854.
    size, groups = sum(ROWS.values()) * (DIM + state) * 4, processes // described["sharding_group"]
    if parallel["name"] == "hsdp_2d":
        assert described["models"]["fm"]["replication_bytes"] == size * (groups - 1) // processes


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
def test_sent_bytes_equal_a_sum_over_pairs_of_processes(planned: Any, sharding: str, wire: tuple[str, int]) -> None:
    """Each process's bags are summed on the owners of the rows; each partial sum sent to another process counts."""
    group, local = 4, 2
    model = planned(4, 4, name="hsdp_2d", sharding=[sharding], communication=wire[0])["models"]["fm"]
    examples = BATCH // 4
    # A candidate is a bag, and so is an event; keys of a collection have equal numbers of bags.
    bags = {"user": examples, "surface": examples, "tags": examples, "item": examples + examples * EVENTS}
    ids = {"user": examples, "surface": examples, "tags": examples * TAGS, "item": examples + examples * EVENTS}
    rows, id_bytes, inside = 0, 0.0, 0
    for table in model["tables"]:
        name, owners = table["table"], [shard["process"] for shard in table["shards"]]
        for shard, process in product(table["shards"], range(group)):
            away = shard["process"] != process
            share = shard["rows"] / ROWS[name]
            id_bytes += away * (ids[name] * share * 8 + bags[name] * 4)
            if sharding == "table_row_wise":
                # A single process of another machine sends the sum of that machine.
                rows += (process // local != owners[0] // local) * bags[name] * DIM * wire[1] / len(owners)
            else:
                rows += away * bags[name] * shard["columns"] * wire[1]
        if sharding == "table_row_wise":
            inside += (len(owners) - 1) * group * bags[name] * DIM * wire[1]
    sent = {exchange["name"].partition(":")[0]: sum(exchange["sent_bytes"]) for exchange in model["exchanges"]}
    assert sent["looked-up rows"] == pytest.approx(rows, abs=8)
    assert sent["gradients of looked-up rows"] == pytest.approx(rows, abs=8)
    assert sent["ids"] == pytest.approx(id_bytes, abs=8)
    assert sent.get("parts of rows and their gradients", 0) == pytest.approx(2 * inside, abs=8)


@pytest.mark.parametrize(("name", "group"), [("ddp", None), ("hsdp", 2), ("hsdp_2d", 2)])
def test_an_average_of_the_weights_takes_as_much_as_their_gradients(planned: Any, name: str, group: int | None) -> None:
    plain, averaged = (
        planned(4, group, f"models.fm.optimizer.dense.ema={ema}", name=name)["models"]["fm"]["memory"]
        for ema in ("null", 0.9)
    )
    for process, size in enumerate(plain["gradients"]):
        assert averaged["dense_optimizer"][process] == plain["dense_optimizer"][process] + size > 0
    assert {**averaged, "dense_optimizer": 0} == {**plain, "dense_optimizer": 0}


@pytest.mark.parametrize(("name", "group"), [("ddp", None), ("hsdp", 2), ("hsdp_2d", 2)])
def test_accumulated_gradients_are_averaged_once(planned: Any, name: str, group: int | None) -> None:
    single = planned(4, group, "models.fm.optimizer.dense.accumulate=1", name=name)["models"]["fm"]
    accumulated = planned(4, group, "models.fm.optimizer.dense.accumulate=4", name=name)["models"]["fm"]
    interval = {exchange["name"]: exchange["every"] for exchange in accumulated["exchanges"]}
    averaged = [key for key in interval if "gradients" in key and "dense" in key and "all-reduce" in key]
    assert len(averaged) == (1 if name == "ddp" else 2) and all(interval[key] == 4 for key in averaged)
    assert all(interval[key] in (1, 100) for key in interval if key not in averaged)
    assert sum(accumulated["sent_bytes_per_step"]) < sum(single["sent_bytes_per_step"])


@pytest.mark.parametrize("name", ["ddp", "hsdp", "hsdp_2d"])
def test_managed_ids_are_all_gathered(planned: Any, name: str) -> None:
    overrides = [f"stream.source.features.{key}.ids=managed" for key in ("2", "5.fields.0")]
    managed = planned(4, None, *overrides, name=name)["models"]["fm"]
    hashed = planned(4, None, name=name)["models"]["fm"]
    exchanges = {exchange["name"]: exchange["sent_bytes"] for exchange in managed["exchanges"]}
    sent = exchanges["ids of managed tables: all-gather"]
    assert sent == [BATCH // 4 * (1 + EVENTS) * 8 * 3] * len(sent)
    assert len(managed["exchanges"]) == len(hashed["exchanges"]) + 1
    added = sum(managed["memory"]["dense"]) - sum(hashed["memory"]["dense"])
    assert added == (ROWS["item"] * 24 + 8) * len(sent), "a map on every process"


PLACED = {
    "replicas": ("parallel={name: hsdp_2d, device: cpu, replicas: 2, sharding: [table_wise]}", 2),
    "a single group": ("parallel={name: hsdp_2d, device: cpu, sharding: [column_wise]}", 4),
}
"""A plan for four processes, and the number of processes that share a copy of the model."""


RESET, SOURCES = (5, 30_000, 7, 39_999), (39_000, 12, 13, 25_000)
"""Rows to reset and the rows that they copy, on the same half of a table or not."""
EACH = [[parallel, "models.fm.optimizer.tables.name=rowwise_adagrad"] for parallel, _ in PLACED.values()]


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs four processes, and returns the folder with their measurements."""
    folder = tmp_path_factory.mktemp("placed")
    path = folder / "planned.yaml"
    path.write_text(yaml.safe_dump(tree()))
    torchrun(placed_worker.main, str(path), EACH, [EACH[0], RESET, SOURCES], folder, processes=4)
    return folder


def test_rows_of_tables_that_are_split_by_rows_are_reset(placed: Path) -> None:
    tensors = load_file(placed / "reset.safetensors")
    before = {name.removeprefix("before/"): tensors[name] for name in tensors if name.startswith("before/")}
    assert sum(tensor.numel() for tensor in before.values()) > sum(ROWS.values()) * (DIM + 1)
    changed = 0
    for name, expected in before.items():
        if "table_item" in name:
            weights = expected.shape == (ROWS["item"], DIM)
            expected[list(RESET)] = expected[list(SOURCES)] if weights else 0.0
            changed += 1
        assert torch.equal(tensors[f"after/{name}"], expected), name
    assert changed == 2, "the weights, and a number for each row"


def test_processes_hold_and_send_the_planned_bytes(placed: Path) -> None:
    measured = [json.loads((placed / f"{process}.json").read_text()) for process in range(4)]
    for number, (case, (_, group)) in enumerate(PLACED.items()):
        experiment = exfm.load_experiment(str(placed / "planned.yaml"), EACH[number])
        described = as_dict(plan(experiment, Cluster(4, 4, 128 * 10**9)))
        assert described["sharding_group"] == group
        model = described["models"]["fm"]
        exchanges = [exchange for exchange in model["exchanges"] if "looked-up rows" in exchange["name"]]
        for process in range(4):
            real = measured[process][number]
            expected = {name: model["memory"][name][process % group] for name in real if name != "rows"}
            expected["rows"] = sum(exchange["sent_bytes"][process % group] for exchange in exchanges)
            assert real == expected, case


@pytest.mark.parametrize("overrides", [[], ["models.fm.precision=bf16"], ["models.fm.activation_checkpointing=true"]])
@pytest.mark.parametrize("encoder", ["din", "transformer"])
def test_activations_are_those_of_a_real_forward_pass(
    overrides: list[str], encoder: str, write: Callable[..., str]
) -> None:
    experiment = exfm.load_experiment(write(tree()), [*overrides, f"models.fm.sequence_encoder.name={encoder}"])
    schema, arm, lengths = experiment.schema, experiment.arms[0], list_lengths(experiment.schema, {})
    with torch.device("meta"):
        model = build_model(arm, schema)
    counted = forward_cost(model, schema, 16, lengths)
    real = build_model(arm, schema)
    experiment.config.parallel.build().parallelize(real, arm.config.optimizer.tables)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in real.parameters()}
    kept: dict[int, Tensor] = {}
    inside = [False]

    def pack(tensor: Tensor) -> Tensor:
        if not inside[0] and tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    # Tensors that FBGEMM saves are no activations.
    for lookups in (real.featurizer.pooled, real.featurizer.events):
        assert lookups is not None
        lookups.bags.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True))
        lookups.bags.register_forward_hook(lambda *_: inside.__setitem__(0, False))
    batch = real.narrow(_full_batch(schema, 16, lengths))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        real(batch)
    assert counted.flops == count_flops(lambda: real(batch)) > 0
    # Empty tensors have no address, and a storage may reuse the address of a freed storage.
    assert counted.saved_bytes == pytest.approx(
        sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), rel=0.02
    )


def test_a_foundation_model_of_3t_parameters_fits_on_4096_devices(exfm_cli: Any) -> None:
    config = str(ROOT / "examples/plan/fm-3t.yaml")
    options = ["--world-size", "4096", "--sharding-group", "256", "--hbm-gb", "80", "--json"]
    described = json.loads(exfm_cli("plan", config, *options).out)
    fm = described["models"]["fm"]
    assert described["fits"] and fm["parameters"]["sparse"] == 3_200_000_000_000
    assert sum(fm["memory"]["tables"]) == 12_800_000_000_000 and len(fm["memory"]["tables"]) == 256
    assert max(fm["memory"]["tables"]) < 50.1e9 and max(described["needed_bytes"]) < 68e9
    assert fm["replication_bytes"] == (12_800_000_000_000 + 64 * 195_312_500 * 4) * 15 // 4096


def test_suggested_changes_fit(write: Callable[..., str], exfm_cli: Any) -> None:
    path = write(tree(name="hsdp_2d", sharding=["row_wise"], replicas=4))
    options = ["--world-size", "8", "--hbm-gb", "0.0018", "--per-machine", "2", "--json"]
    outcome = exfm_cli("plan", path, *options)
    assert outcome.status == 1 and outcome.err.startswith("does not fit: ")
    remedies = json.loads(outcome.out)["remedies"]
    assert any("--sharding-group" in remedy["change"] for remedy in remedies)
    assert any("rowwise_adagrad" in remedy["change"] for remedy in remedies)
    for remedy in (remedies[0], remedies[-1]):
        again = exfm_cli("plan", path, *options, *shlex.split(remedy["change"]))
        assert again.status == 0 and max(json.loads(again.out)["needed_bytes"]) == remedy["needed_bytes"]


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
def test_impossible_plans_are_errors_of_the_user(
    arguments: list[str], words: str, write: Callable[..., str], exfm_cli: Any
) -> None:
    outcome = exfm_cli("plan", write(tree()), *arguments)
    assert outcome.status == 2 and outcome.out == "" and words in outcome.err


def test_a_parallel_plan_without_a_layout_is_named(
    write: Callable[..., str], exfm_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exfm.parallel import SingleProcessPlan

    monkeypatch.delattr(SingleProcessPlan, "estimate_layout")
    outcome = exfm_cli("plan", write(tree()), "--world-size", "1")
    assert outcome.status == 2 and "parallel: single does not tell where it would put a model" in outcome.err


def test_consecutive_processes_are_a_span() -> None:
    assert spans([0, 1, 2, 5, 7, 8], 9) == "0-2, 5, 7-8"
    assert spans([1, 0, 0], 2) == "all" and spans([0], 1) == "0" and spans([3], 4) == "3"
