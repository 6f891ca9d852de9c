"""States and embeddings read from an FM's vectors: in how many bytes, with which error, and by a separate job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import exfm
from exfm.supervision.joiner import SupervisionRows
from exfm.transfer.build import check_models
from tests.training.logs import differences, load, predictions, supervision, train
from tests.training.test_jobs import job
from tests.training.test_states import _batches, config, trainer_of

READ: dict[str, Any] = {
    "states": {"user": {"from": "representation"}, "item": {"from": "layers.0"}},
    "state_dim": 16,
    "embedding": "float16",
    "embedding_dim": 16,
}


def experiment(folder: Path, name: str, **changed: Any) -> exfm.Experiment:
    settings = config(folder, name)
    settings["models"]["fm"]["supervision"] = READ | changed
    return load(folder, settings)


def decoded(run_dir: str) -> tuple[dict[str, np.ndarray], int]:
    """All states and embeddings of the FM by column, and the bytes that a row of them takes in memory."""
    parts = []
    for table in supervision(run_dir, "fm").values():
        parts += [SupervisionRows.from_arrow(batch) for batch in table.to_batches()]
    rows = SupervisionRows.cat(parts)
    assert rows.embedding is not None
    columns = {**rows.vectors, "embedding": rows.embedding}
    tensors = [tensor for column in columns.values() for tensor in (column.values_SE, column.scale_S)]
    size = sum(tensor.element_size() * tensor[0].numel() for tensor in tensors if tensor is not None)
    return {name: column.decode().numpy() for name, column in columns.items()}, size


def test_int8_takes_half_the_bytes_and_is_half_a_step_off(tmp_path: Path) -> None:
    whole = experiment(tmp_path, "whole")
    rounded = experiment(tmp_path, "rounded", state_dtype="int8", embedding="int8")
    train(whole)
    train(rounded)
    expected, whole_bytes = decoded(whole.run_dir)
    actual, bytes_of_int8 = decoded(rounded.run_dir)
    assert (whole_bytes, bytes_of_int8) == (3 * 16 * 2, 3 * (16 + 4))
    for name, exact in expected.items():
        step = np.abs(exact).max(axis=1, keepdims=True) / 127
        assert np.all(np.abs(actual[name] - exact) <= step * 0.5 + np.abs(exact) * 2**-10 + 1e-6), name
        error = np.sqrt(np.square(actual[name] - exact).mean() / np.square(exact).mean())
        assert 0 < error < 0.01, (name, error)
    for window, table in predictions(whole.run_dir, "fm").items():
        assert table.equals(predictions(rounded.run_dir, "fm")[window])


def test_states_are_codes_of_the_vectors_before_the_step(tmp_path: Path) -> None:
    """Recomputed from the representation of each batch, by the weights from before its step."""
    run = experiment(tmp_path, "run")
    train(run)
    stored = supervision(run.run_dir, "fm")[0]
    trainer = trainer_of(run, "fm")
    chunk = trainer.model.narrow(next(iter(_batches(run))))
    for start in range(0, 128, 64):
        batch = chunk.select(torch.arange(start, start + 64))
        representation_BR = torch.from_numpy(_representation(trainer, batch))
        read = trainer.model.read_states
        assert read is not None
        compressors: dict[str, Any] = dict(read.compressors.items())
        moments = compressors["embedding"].standard.moments()
        mean_R, square_R = moments[:64], moments[64:]
        standard_BR = representation_BR - mean_R
        if start:
            variance_R = square_R - mean_R.square()
            standard_BR /= variance_R.clamp(min=1e-4 * variance_R.mean()).sqrt()
        standard_BR = standard_BR.clamp(-10, 10).float()
        for column in ("state_user", "embedding"):
            encoder = compressors[column].encoder
            code_BK = standard_BR @ encoder.weight.T + encoder.bias
            values = stored.column(column).combine_chunks().flatten().to_numpy().reshape(-1, 16)[start : start + 64]
            np.testing.assert_allclose(values, code_BK.detach().numpy(), rtol=2e-3, atol=2e-3)
        trainer.step(batch, (), ("click",))
        trainer.observe(batch)


def _representation(trainer: Any, batch: Any) -> Any:
    with torch.no_grad():
        return trainer.model(batch).representation_BR.double().numpy()


def test_separate_jobs_store_the_states_of_a_whole_run(tmp_path: Path) -> None:
    whole = experiment(tmp_path, "whole", delay="1d", state_dtype="int8")
    expected = exfm.run(whole)
    config_path = tmp_path / "jobs.yaml"
    settings = config(tmp_path, "whole") | {"name": "jobs", "run_dir": str(tmp_path / "jobs")}
    settings["models"]["fm"]["supervision"] = READ | {"delay": "1d", "state_dtype": "int8"}
    apart = load(tmp_path, settings)
    for stage, model in (("train", "fm"), ("supervise", "fm"), ("train", "vm")):
        job(config_path, stage, model)
    actual, _ = decoded(apart.run_dir)
    expected_columns, _ = decoded(whole.run_dir)
    for name, vectors in expected_columns.items():
        assert np.array_equal(actual[name], vectors) and len(np.unique(vectors, axis=0)) > 100, name
    students = predictions(apart.run_dir, "vm")
    assert students and all(
        table.equals(predictions(whole.run_dir, "vm")[window]) for window, table in students.items()
    )
    assert not differences(exfm.run(apart)["gains"], expected["gains"], "gains")


@pytest.mark.parametrize(
    ("supervision", "message"),
    [
        (
            {"states": {"user": {"from": "layers.7"}}},
            r"models\.fm: supervision\.states\.user\.from: .* no layer 'layers",
        ),
        (
            {"states": {"user": {"from": "tokens"}}},
            r"states\.user\.from: a state made of tokens is written as the list",
        ),
        ({"states": {"user": {"form": "layers.0"}}}, r"states\.user\.form: unknown key 'form'. Did you mean 'from'"),
        ({"states": {"user": 5}}, r"states\.user: must be a list or a mapping \{from\}; given: 5"),
        ({"states": {"usr": {"from": "layers.0"}}}, r"no categorical feature .*'usr'.*user"),
        ({"states": {"user": {"from": "representation"}}, "state_dim": 65}, r"65 numbers are no compression of the 64"),
        ({"embedding_dim": 8}, r"supervision: embedding_dim: 8 numbers of a representation that is not stored"),
    ],
)
def test_wrong_sources_are_refused(tmp_path: Path, supervision: dict[str, Any], message: str) -> None:
    settings = config(tmp_path, "run")
    settings["models"]["fm"]["supervision"] = supervision
    settings["models"]["vm"] |= {"transfer": [], "control": False}
    with pytest.raises(exfm.ConfigError, match=message):
        check_models(load(tmp_path, settings))


def test_a_run_says_what_states_cost_and_reads_its_own_config(tmp_path: Path) -> None:
    run = experiment(tmp_path, "run")
    results = exfm.run(run)
    layer = trainer_of(run, "fm").model.backbone.layer_dims["layers.0"]
    cost = results["models"]["fm"]["parts"]["states"]
    assert cost["flops_per_example"] == 2 * 16 * (64 + 64 + layer)
    autoencoders = sum(2 * 16 * width + width + 16 + 16 + 1 for width in (64, 64, layer))
    networks = 8 * 64 + 64 + 64 * 16 + 16  # of the other entity's token
    assert cost["dense_parameters"] == autoencoders + 2 * (networks + 16 + 16)
    again = exfm.load_experiment(str(Path(run.run_dir) / "config.yaml"))
    assert again.config.models["fm"].supervision == run.config.models["fm"].supervision
    exfm.run(again)
