"""`exfm plan` divides work by rates, as by hand, and names the resource that limits."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.planning.test_plan import BATCH, DIM, EVENTS, TAGS, tree

RATES = ["--tflops", "0.5", "--memory-gbps", "20", "--link-gbps", "40", "--network-gbps", "2"]


@pytest.fixture
def planned(write: Callable[..., str], exfm_cli: Any) -> Callable[..., dict[str, Any]]:
    def run(processes: int, *options: str, **parallel: Any) -> dict[str, Any]:
        overrides = [option for option in options if "=" in option]
        more = [option for option in options if "=" not in option]
        arguments = ["--world-size", str(processes), "--per-machine", "2", *RATES, *more, "--json", *overrides]
        outcome = exfm_cli("plan", write(tree(**parallel)), *arguments)
        assert outcome.status == 0, outcome.err
        described: dict[str, Any] = json.loads(outcome.out)
        return described

    return run


@pytest.mark.parametrize(("optimizer", "state"), [("sgd", 0), ("rowwise_adagrad", 1), ("adagrad", DIM)])
def test_a_step_of_a_single_process_takes_its_work_over_its_rates(planned: Any, optimizer: str, state: int) -> None:
    described = planned(1, f"models.fm.optimizer.tables.name={optimizer}")
    model, time = described["models"]["fm"], described["time"]["models"]["fm"]
    assert time["seconds"]["matrix products"] == pytest.approx(3 * model["forward_flops_per_process"] / 0.5e12)
    assert time["seconds"]["links"] == time["seconds"]["network"] == 0
    # The candidate's user, item and surface, its tags, and the items of its history.
    ids = BATCH * (3 + TAGS + EVENTS)
    memory = {name: sizes[0] for name, sizes in model["memory"].items()}
    bytes_ = ids * (3 * DIM + 2 * state) * 4 + 2 * memory["activations"]
    bytes_ += 2 * memory["dense"] + 2 * memory["dense_optimizer"] + memory["gradients"]
    assert time["seconds"]["memory"] == pytest.approx(bytes_ / 20e9)
    assert time["step_s"] == [max(time["seconds"].values()), pytest.approx(sum(time["seconds"].values()))]
    assert time["seconds"][time["limit"]] == time["step_s"][0]
    assert time["examples_per_s"] == pytest.approx([BATCH / time["step_s"][1], BATCH / time["step_s"][0]])


def test_blocks_that_are_computed_again_take_a_further_pass(planned: Any) -> None:
    seconds = [
        planned(1, f"models.fm.activation_checkpointing={again}")["time"]["models"]["fm"]["seconds"]["matrix products"]
        for again in ("false", "true")
    ]
    assert seconds[1] == pytest.approx(seconds[0] * 4 / 3)


def test_collectives_inside_a_machine_take_its_links_and_others_the_network(planned: Any) -> None:
    described = planned(4, "--sharding-group", "2", name="hsdp")
    sent = {"links": 0.0, "network": 0.0}
    for exchange in described["models"]["fm"]["exchanges"]:
        resource = "links" if exchange["processes"] <= 2 else "network"
        sent[resource] += max(exchange["sent_bytes"]) / exchange["every"]
    seconds = described["time"]["models"]["fm"]["seconds"]
    assert min(sent.values()) > 0
    assert seconds["links"] == pytest.approx(sent["links"] / 40e9)
    assert seconds["network"] == pytest.approx(sent["network"] / 2e9)


def test_a_window_costs_the_steps_of_all_models(planned: Any) -> None:
    described = planned(4, "--window-rows", "1000", "--price", "2.5", name="ddp")
    window, step = described["time"]["window"], described["time"]["models"]["fm"]["step_s"]
    steps = -(-1000 // BATCH)
    assert window["seconds"] == pytest.approx([steps * step[0], steps * step[1]])
    assert window["price"] == pytest.approx([4 * 2.5 * seconds / 3600 for seconds in window["seconds"]])
    # A window of the stream is a day.
    assert window["price_per_day"] == pytest.approx(window["price"])
    assert window["share_of_stream"] == pytest.approx([seconds / 86_400 for seconds in window["seconds"]])


def test_rates_of_this_machine_are_measured(write: Callable[..., str], exfm_cli: Any) -> None:
    shown = exfm_cli("plan", write(tree()), "--world-size", "1", "--measure", "--window-rows", "1000", "--price", "1")
    assert shown.status == 0 and "time of a step, in ms" in shown.out and "a window of 1,000 rows" in shown.out
    outcome = exfm_cli("plan", write(tree()), "--world-size", "1", "--measure", "--json")
    rates = json.loads(outcome.out)["time"]["rates"]
    # Any processor of ten years reaches these, and none the upper bounds.
    assert 1e9 < rates["flops"] < 1e16 and 1e8 < rates["memory"] < 1e14 and rates["link"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tflops", "1"], "--memory-gbps: the time of a step needs it, above 0; --measure takes"),
        (["--tflops", "0", "--memory-gbps", "1"], "--tflops: the time of a step needs it, above 0"),
        (["--price", "1"], "--window-rows and --price need the time of a step: add --measure"),
        (["--window-rows", "0"], "--window-rows"),
    ],
)
def test_missing_rates_are_named(options: list[str], words: str, write: Callable[..., str], exfm_cli: Any) -> None:
    outcome = exfm_cli("plan", write(tree()), "--world-size", "1", *options)
    assert outcome.status == 2 and words in outcome.err


def test_links_are_needed_by_several_processes(write: Callable[..., str], exfm_cli: Any) -> None:
    options = ["--world-size", "4", "--per-machine", "2", "--measure", "parallel={name: ddp}"]
    assert "--link-gbps: the time of a step needs it" in exfm_cli("plan", write(tree()), *options).err
    outcome = exfm_cli("plan", write(tree()), *options, "--link-gbps", "10")
    assert "--network-gbps: the time of a step needs it" in outcome.err
