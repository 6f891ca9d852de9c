"""`exfm export` writes the trained model without transfer, with equal graphs for a student and its control."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from torch.fx import GraphModule

import exfm
import exfm.serving
from exfm.registry.discovery import discover
from exfm.serving.capture import capture
from exfm.serving.description import arrays
from exfm.serving.export import Form, _column_types, export
from exfm.serving.find_snapshot import find_arm, find_snapshot
from exfm.serving.served_model import ServedModel, pool_by_adding
from exfm.serving.write_programs import to_onnx
from exfm.supervision.store import Store
from tests.modeling.cases import schema_of
from tests.serving.conftest import STUDENTS
from tests.serving.rows import random_rows, trained, untaught_arm, with_columns
from tests.training.logs import experiment_dict, load, make_log, train, write_log

PROGRAM = Form(compiled=False)


def captured(experiment: exfm.Experiment, model: str) -> torch.export.ExportedProgram:
    arm, store = find_arm(experiment, model), Store(experiment.run_dir)
    weights = store.snapshots.load_whole(find_snapshot(experiment, arm, store).weights)
    return capture(ServedModel(arm, experiment.schema, weights))


def nodes(program: torch.export.ExportedProgram) -> list[tuple[str, ...]]:
    """Describes every node of the graph and its subgraphs: operation, arguments and resulting values."""
    described: list[tuple[str, ...]] = []
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                target, arguments, value = str(node.target), str(node.args), str(node.meta.get("val"))
                described.append((node.op, node.name, target, arguments, str(node.kwargs), value))
    return described


@pytest.mark.parametrize("model", STUDENTS)
def test_a_student_is_the_same_graph_as_its_control(model: str, run: exfm.Experiment) -> None:
    student, control = captured(run, model), captured(run, f"{model}.control")
    assert nodes(student) == nodes(control)
    shapes = [{key: value.shape for key, value in program.state_dict.items()} for program in (student, control)]
    assert shapes[0] == shapes[1]  # no further parameter
    inputs = [[spec.arg for spec in program.graph_signature.input_specs] for program in (student, control)]
    assert inputs[0] == inputs[1]
    assert any(not torch.equal(value, control.state_dict[key]) for key, value in student.state_dict.items())


def test_the_folder_and_its_description(tmp_path: Path, exfm_cli: Any, experiment_file: str) -> None:
    outcome = exfm_cli("export", experiment_file, "--model", "parts", "--out", str(tmp_path / "out"), "--no-compile")
    assert outcome.status == 0 and "program.pt2" in outcome.out
    *files, weights = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == ["MODEL_CARD.md", "inputs.json", "program.pt2"]
    assert weights.startswith("weights-") and weights.endswith(".safetensors")
    described = json.loads((tmp_path / "out/inputs.json").read_text())
    assert described["model"] == "parts" and described["watermark"].startswith("2023-11-22T00:00")
    assert described["columns"] == {
        "user": "string", "item": "string", "price": "double", "history": "list of string"
    }  # fmt: skip
    assert [tensor["name"] for tensor in described["inputs"]] == [
        "dense", "user.rows", "user.starts", "item.rows", "item.starts", "history.item", "history.lengths"
    ]  # fmt: skip
    assert [(task["name"], task["shape"]) for task in described["outputs"]] == [("click", ["B"]), ("buy", ["B"])]


def test_inputs_of_a_teacher_are_exported(experiment_file: str, tmp_path: Path) -> None:
    config = yaml.safe_load(Path(experiment_file).read_text())
    models = {name: config["models"][name] for name in ("fm", "ah")}
    inputs = [{"name": "loopfm", "teacher": "fm", "states": 4}, {"name": "latest_state", "teacher": "fm"}]
    models["ah"] |= {"inputs": inputs, "tasks": ["click"], "control": False}
    experiment = load(tmp_path, {**config, "models": models, "run_dir": str(tmp_path / "run")})
    train(experiment)
    weights = captured(experiment, "ah").state_dict
    assert [value.shape for key, value in weights.items() if "inputs.tables" in key and value.dim() == 2]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_compiled_model_and_the_program_agree(size: int, compiled: str, run: exfm.Experiment) -> None:
    machine_code, program = exfm.serving.load(compiled), exfm.serving.load(compiled, compiled=False)
    window = exfm.sources.Window(0, run.source.time_range().start_us, run.source.time_range().end_us)
    rows = next(iter(run.source.read(window))).slice(5, size)
    without_history = [row | {"history": []} for row in rows.to_pylist()]
    for batch in (rows, without_history):
        predictions, expected = machine_code.predict(batch), program.predict(batch)
        assert predictions.keys() == expected.keys() == {"click", "buy"}
        for task, probabilities in predictions.items():
            np.testing.assert_allclose(probabilities, expected[task], rtol=0, atol=1e-6)


def test_another_torch_is_refused(compiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(exfm.RunError, match=r"compiled\.pt2: compiled for torch 2.* and this is 9\.9; export again"):
        exfm.serving.load(compiled)
    assert exfm.serving.load(compiled, compiled=False).predict([]).keys() == {"click", "buy"}


@pytest.mark.parametrize(
    ("model", "features"),
    [
        ({"backbone": {"name": "wukong", "layers": 1}}, ("user", "price", "history", "viewed")),
        ({"backbone": {"name": "mlp"}, "sequence_encoder": {"name": "mean"}}, ("user", "history")),
    ],
    ids=["averaged", "event by event"],
)
def test_onnx(model: dict[str, Any], features: tuple[str, ...], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    schema = with_columns(schema_of(*features))
    arm = untaught_arm({"embedding_dim": 8, **model}, schema)
    weights = trained(arm, schema)[1]
    served = ServedModel(arm, schema, weights)
    with warnings.catch_warnings(action="ignore"):
        to_onnx(capture(ServedModel(arm, schema, weights, pool_by_adding)), served, tmp_path / "model.onnx")
    loaded = pytest.importorskip("onnx").load(tmp_path / "model.onnx")
    assert "Loop" not in {node.op_type for node in loaded.graph.node}  # over the examples: a hundred times as slow
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for size in (1, 3, 100, 513, 5_000):
        inputs = list(arrays(served.features, random_rows(schema, size)))
        outputs = session.run(["click", "buy"], dict(zip(served.names, inputs, strict=True)))
        expected = served(*map(torch.from_numpy, inputs))
        for probability_B, expected_B in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(probability_B, expected_B.numpy(), rtol=0, atol=1e-6)


BACKBONE = """
import torch
from torch import nn
import exfm

class Odd(exfm.Backbone):
    '''Computes another result under torch.export.'''

    name = "odd"

    class Config(exfm.ComponentConfig):
        '''None.'''

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.layer = nn.Linear(len(inputs.tokens) * inputs.dim, 4)
        self.output_dim = 4

    def forward(self, tokens_BND, sequences):
        {body}
        return self.layer(tokens_BND.flatten(1))

@exfm.hookimpl
def exfm_register_backbones():
    return [Odd]
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("tokens_BND = tokens_BND + torch.compiler.is_exporting()", "the captured graph is .* off the model"),
        ("tokens_BND = tokens_BND if tokens_BND.sum().item() > 0 else -tokens_BND", "torch.export cannot capture it"),
        ("torch._check(tokens_BND.shape[0] > 1)", "cannot capture it|the captured graph refuses 1 examples"),
    ],
    ids=["another result", "a branch on data", "a batch of 1"],
)
def test_a_component_that_cannot_be_exported(
    body: str, words: str, plugins: Any, experiment_file: str, run: exfm.Experiment, tmp_path: Path
) -> None:
    plugins.install("odd_plugin", BACKBONE.format(body=body))
    overrides = ["models={odd: {backbone: {name: odd}, batch_size: 64}}", f"run_dir={tmp_path / 'run'}"]
    experiment = exfm.load_experiment(experiment_file, overrides, registry=discover())
    train(experiment)
    with pytest.raises(exfm.RunError, match=f"models.odd: .*{words}"):
        export(experiment, "odd", str(tmp_path / "out"), PROGRAM)
    assert not (tmp_path / "out").exists()


def test_an_operation_without_an_onnx_form(
    plugins: Any, experiment_file: str, run: exfm.Experiment, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    plugins.install("odd_plugin", BACKBONE.format(body="tokens_BND = torch.special.bessel_j0(tokens_BND)"))
    overrides = ["models={odd: {backbone: {name: odd}, batch_size: 64}}", f"run_dir={tmp_path / 'run'}"]
    experiment = exfm.load_experiment(experiment_file, overrides, registry=discover())
    train(experiment)
    with pytest.raises(exfm.RunError, match="the model has no ONNX form"):
        export(experiment, "odd", str(tmp_path / "out"), Form(compiled=False, onnx=True))


def test_wrong_input(run: exfm.Experiment, experiment_file: str, exfm_cli: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for command in ("export", "predict"):
        for overrides, words in {
            (): "no model is called 'paths'. Did you mean 'parts'?",
            (f"run_dir={tmp_path}/none",): "there is no snapshot of 'ah'; `exfm run` or `exfm train`",
            ("models.ah.head_hidden=[7]",): "models.ah was trained with head_hidden: [], and is now [7]",
        }.items():
            model = "ah" if overrides else "paths"
            outcome = exfm_cli(command, experiment_file, "--model", model, "--out", out, *overrides)
            assert outcome.status == 2 and words in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_compiler_is_named(run: exfm.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise RuntimeError("InvalidCxxCompiler")

    monkeypatch.setattr("exfm.serving.export.get_cpp_compiler", none)
    with pytest.raises(exfm.ConfigError, match=r"install g\+\+, or give --no-compile"):
        export(run, "ah", str(tmp_path / "out"))


def test_odd_types_are_described_by_the_types_that_they_are_read_as(tmp_path: Path) -> None:
    log = make_log(20)
    odd = {"item": pa.decimal128(20, 0), "price": pa.decimal128(30, 20), "user": pa.int16()}
    for name, kind in odd.items():
        log = log.set_column(log.schema.names.index(name), name, log[name].cast(kind, safe=False))
    config = experiment_dict(write_log(tmp_path / "log", log), str(tmp_path / "run"))
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(config))
    experiment = exfm.load_experiment(str(tmp_path / "odd.yaml"))
    kinds = _column_types(experiment, experiment.schema.features, "")
    assert (kinds["item"], kinds["price"], kinds["user"]) == ("int64", "double", "int64")
