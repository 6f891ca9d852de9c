"""Tests overrides, references between keys, and the resolved config."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
import yaml

import exfm
from exfm.config.resolved import parse_resolved

GOOD = [
    ("seed=3", ["seed"], 3),
    ("models.vm.embedding_dim=8", ["models", "vm", "embedding_dim"], 8),
    ("models.vm.transfer.0.weight=2", ["models", "vm", "transfer", 0, "weight"], 2.0),
    ("models.vm.transfer[0].weight=2", ["models", "vm", "transfer", 0, "weight"], 2.0),
    ("models.vm.features=[user_id]", ["models", "vm", "features"], ["user_id"]),
    ("models.vm.features.1=price", ["models", "vm", "features"], ["user_id", "price"]),
    ("models.vm.where.surface=1", ["models", "vm", "where", "surface"], 1),
    ("models.vm.where.surface={bucket: 1, of: 4}", ["models", "vm", "where", "surface"], {"bucket": 1, "of": 4}),
    ("models.vm.sequence_encoder.name=mean", ["models", "vm", "sequence_encoder"], {"name": "mean"}),
    ("models.fm.sequence_encoder=null", ["models", "fm", "sequence_encoder"], None),
    ("models.third.backbone.name=dlrm", ["models", "third", "backbone", "name"], "dlrm"),
    ("stream.source.rows_per_day=1e3", ["stream", "source", "rows_per_day"], 1000),
    ("stream.source.start=2026-02-01", ["stream", "source", "start"], "2026-02-01"),
    ("stream.window=90m", ["stream", "window"], "90m"),
    ("evaluation.skip=.5", ["evaluation", "skip"], 0.5),
    ("run_dir=", ["run_dir"], ""),
    ("run_dir=s3://bucket/a=b", ["run_dir"], "s3://bucket/a=b"),
    ("run_dir=runs/${name}", ["run_dir"], "runs/ads"),
    ("seed=${models.fm.backbone.layers}", ["seed"], 1),
]


@pytest.mark.parametrize(("override", "path", "value"), GOOD)
def test_an_override_replaces_the_files_value(override, path, value, experiment, write):
    node = exfm.load_experiment(write(experiment), [override]).as_dict()
    for key in path:
        node = node[key]
    assert node == value


def test_later_overrides_win(experiment, write):
    assert exfm.load_experiment(write(experiment), ["seed=1", "name=b", "seed=2"]).config.seed == 2


BAD = [
    ("seed", "write key.path=value"),
    ("=3", "write key.path=value"),
    ("a..b=3", "write key.path=value"),
    ("seed=[", "override 'seed=\\['"),
    ("seed=!!python/object:os.x {}", "override 'seed=!!python"),
    ("models.vm.transfer.5.weight=2", "override .*transfer.*index out of range"),
    ("models.vm.transfer.x.weight=2", "override .*'x'"),
    ("models.vm.features.7=price", "override .*index out of range"),
    ("seed=x", r"set on the command line\): seed: must be a whole number; given: 'x'"),
    ("seed=", r"set on the command line\): seed: must be a whole number; given: ''"),
    ("seed.x=3", r"set on the command line\): seed: must be a whole number"),
    ("modelz.vm=3", r"set on the command line\): modelz: unknown key 'modelz'\. Did you mean 'models'\?"),
    ("models.vm.embeding_dim=8", r"command line\): models\.vm\.embeding_dim: .* Did you mean 'embedding_dim'\?"),
    ("models.vm.transfer.0.weihgt=2", r"command line\): models\.vm\.transfer\.0\.weihgt: .* Did you mean 'weight'\?"),
    ("models.vm.transfer[0].weight=x", r"command line\): models\.vm\.transfer\.0\.weight: must be a number"),
    ("models.vm.where.surface.off=2", r"command line\): models\.vm\.where\.surface\.off: .* Did you mean 'of'\?"),
    ("stream.source={name: synthetic_ads, dayz: 1}", r"command line\): stream\.source\.dayz: .* Did you mean 'days'\?"),
    ("seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
]


@pytest.mark.parametrize(("override", "words"), BAD)
def test_a_bad_override_is_told_as_such(override, words, experiment, write):
    file = write(experiment)
    with pytest.raises(exfm.ConfigError, match=words) as error:
        exfm.load_experiment(file, [override])
    assert str(error.value).startswith((file, f"override {override!r}: ")) and "\n" not in str(error.value)


def test_the_files_own_mistakes_are_not_put_on_the_command_line(experiment, write):
    experiment["seed"] = "x"
    with pytest.raises(exfm.ConfigError) as error:
        exfm.load_experiment(write(experiment), ["models.vm.embedding_dim=8"])
    assert "command line" not in str(error.value)


def test_what_is_left_out_is_filled_in(experiment, write):
    del experiment["parallel"], experiment["evaluation"], experiment["plugins"]
    resolved = exfm.load_experiment(write(experiment))
    assert resolved.as_dict()["parallel"]["name"] == "single"
    assert resolved.run_dir == "runs/ads"
    assert resolved.as_dict()["models"]["vm"]["batch_size"] == 512


AWKWARD = ["1e3", "0x1f", "1_000", "2026-01-01", "yes", "null", "~", "", "a: b", "# no", "é", "1.5", "-", "true", " a"]


def test_the_resolved_config_loads_again_and_is_equal(experiment, write):
    experiment["models"]["vm"]["where"] |= {"ad_id": [*AWKWARD, 3, True], "advertiser": "1e5"}
    experiment |= {"run_dir": "runs/${name}", "versions": {"torch": "2.13"}}
    first = exfm.load_experiment(write(json.dumps(experiment)), ["models.fm.supervision.delay=1234567s", "seed=5"])
    again = exfm.load_experiment(write(first.as_yaml(), "again.yaml"))
    assert again.as_dict() == first.as_dict() and again.arms == first.arms
    assert again.config.models["vm"].where["ad_id"] == (*AWKWARD, 3, True)
    assert json.loads(json.dumps(first.as_dict())) == first.as_dict()


@pytest.mark.parametrize("command", ["run", "validate"])
def test_the_command_line_ends_with_status_2(command, experiment, write, exfm_cli):
    outcome = exfm_cli(command, write(experiment), "seed=x")
    assert outcome.status == 2 and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1


def test_print_config_prints_what_loads_again(experiment, write, exfm_cli):
    first = exfm_cli("run", write(experiment), "seed=7", "--print-config")
    assert first.status == 0 and first.err == ""
    assert yaml.safe_load(first.out)["seed"] == 7
    assert exfm_cli("run", write(first.out, "again.yaml"), "--print-config").out == first.out


@pytest.mark.soak
def test_a_large_file_and_its_resolved_config_are_read(experiment, write):
    experiment["models"]["vm"]["where"] = {"user_id": list(range(10_000))}
    large = exfm.load_experiment(write(experiment))
    assert parse_resolved(large.as_yaml()) == large.as_dict()


def test_a_mapping_is_read_like_a_file_of_its_content(experiment: dict[str, Any], write: Callable[..., str]) -> None:
    overrides = ["seed=7", "models.vm.embedding_dim=4"]
    from_file = exfm.load_experiment(write(experiment), overrides)
    frozen = MappingProxyType({**experiment, "plugins": {"block": ()}})
    before = copy.deepcopy(experiment)
    assert exfm.load_experiment(frozen, overrides).as_dict() == from_file.as_dict()
    assert experiment == before
    for wrong, message in (
        ({}, "experiment: it is empty"),
        ({**experiment, "nme": "x"}, r"experiment: nme: .*Did you mean 'name'"),
        ({**experiment, "seed": object()}, r"experiment: seed: .*object"),
    ):
        with pytest.raises(exfm.ConfigError, match=message):
            exfm.load_experiment(wrong)
