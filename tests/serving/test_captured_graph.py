"""The captured graph of every component computes the same as the model, for any number of examples and events."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch

from exfm.data.decode import decode
from exfm.registry.discovery import default_registry
from exfm.serving.capture import capture
from exfm.serving.description import HASHING, arrays, input_specs
from exfm.serving.served_model import ServedModel
from exfm.sources.ids import hash_rows, to_u64
from tests.modeling.cases import EVERYTHING, schema_of
from tests.serving.rows import random_rows, trained, untaught_arm, with_columns

FEATURES = ("user", "price", "item", "viewed", "history")
REQUIRED = {"two_tower": {"item": ["item"]}}


def built_in(kind: str) -> list[str]:
    registry = default_registry()
    return [name for name in registry.names(kind) if registry.provider(kind, name).distribution == "exfm"]


def check(config: dict[str, Any], *features: str, tolerance: float = 1e-6) -> Any:
    """Compares program and model at several sizes, and returns the program."""
    schema = with_columns(schema_of(*features))
    arm = untaught_arm({"embedding_dim": 8, **config}, schema)
    model, weights = trained(arm, schema)
    served = ServedModel(arm, schema, weights)
    program = capture(served)
    run = program.module()
    for size, longest in ((1, 9), (1, 0), (1, 1), (3, 9), (100, 9), (100, 0), (513, 3), (5_000, 2)):
        rows = random_rows(schema, size, seed=size, longest=longest)
        with torch.no_grad():
            logits = model(model.narrow(decode(rows, schema))).logits
            outputs = run(*(torch.from_numpy(array) for array in arrays(served.features, rows)))
        for probability_B, logit_B in zip(outputs, logits.values(), strict=True):
            torch.testing.assert_close(probability_B, logit_B.sigmoid(), rtol=0, atol=tolerance)
    return program


@pytest.mark.soak  # the compliance kit captures each of them alone
@pytest.mark.parametrize("name", built_in("backbone"))
def test_every_backbone(name: str) -> None:
    check({"backbone": {"name": name, **REQUIRED.get(name, {})}}, *FEATURES)


@pytest.mark.soak
@pytest.mark.parametrize("name", built_in("sequence_encoder"))
def test_every_sequence_encoder(name: str) -> None:
    check({"backbone": {"name": "mlp"}, "sequence_encoder": {"name": name}}, *FEATURES)


@pytest.mark.parametrize("encoder", [None, {"name": "mean"}], ids=["averaged", "event by event"])
@pytest.mark.parametrize(
    "features",
    [
        EVERYTHING,
        ("price", "age"),
        ("user",),
        ("tags",),
        ("history",),
        ("clicks",),
        ("moods", "price"),
        ("user", "moods"),
    ],
    ids=",".join,
)
def test_every_kind_of_feature(features: tuple[str, ...], encoder: dict[str, str] | None) -> None:
    check({"backbone": {"name": "mlp"}, "sequence_encoder": encoder, "head_hidden": [5]}, *features)


@pytest.mark.soak  # an export in bfloat16 takes as long as ten others
def test_low_precision() -> None:
    config = {"backbone": {"name": "wukong"}, "sequence_encoder": {"name": "transformer"}, "precision": "bf16"}
    check(config, *FEATURES, tolerance=0.02)


def test_weights_for_training_and_teaching_are_not_exported() -> None:
    extra = {"activation_checkpointing": True, "supervision": {"states": {"user": ["user"]}, "embedding": "float16"}}
    plain = {"backbone": {"name": "wukong"}, "sequence_encoder": {"name": "din"}}
    program, expected = check(plain | extra, *FEATURES), check(plain, *FEATURES)
    assert str(program.graph) == str(expected.graph)
    assert program.state_dict.keys() == expected.state_dict.keys()
    assert not [key for key in program.state_dict if "states" in key]


def test_tables_are_in_the_program_once() -> None:
    program = check({"backbone": {"name": "mlp"}, "sequence_encoder": {"name": "mean"}}, *EVERYTHING)
    tables = {key.rpartition("table_")[2]: value.shape for key, value in program.state_dict.items() if "table_" in key}
    assert tables == {name: (rows, 8) for name, rows in schema_of(*EVERYTHING).tables().items()}


def test_arguments_have_the_shapes_that_are_described() -> None:
    schema = with_columns(schema_of(*EVERYTHING))
    rows = random_rows(schema, 7)
    sizes: dict[str, int] = {"B": 7}
    specs, arguments = list(input_specs(schema.features, {})), list(arrays(schema.features, rows))
    assert len({spec.name for spec in specs}) == len(specs) == len(arguments)
    for spec, array in zip(specs, arguments, strict=True):
        assert str(array.dtype) == spec.dtype
        for dim, size in zip(spec.shape, array.shape, strict=True):
            # Equal names of dimensions mean equal sizes.
            assert size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)


@pytest.mark.parametrize("value", [0, 1, 12, -1, 2**63 - 1, "", "a", "b", "aa", "Zürich", "x" * 40])
def test_hashing_is_as_described(value: int | str) -> None:
    """Follows the description in inputs.json in plain Python."""
    assert "0x9E3779B97F4A7C15" in HASHING
    p, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    if isinstance(value, str):
        key = sum((byte + 1) * p ** (index + 1) for index, byte in enumerate(value.encode())) & mask
    else:
        key = value & mask
    x = (key + p) & mask
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
    assert hash_rows(to_u64(pa.array([value])), 977).tolist() == [(x ^ x >> 31) % 977]
