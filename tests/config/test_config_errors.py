"""Tests the paragraph on every mistake in an experiment file: file, key path, value, allowed values."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

import exfm

GONE = object()

# Key path and value of the mistake; key path in the message (the same where it is empty); words in the message.
MISTAKES: list[tuple[str, Any, str, list[str]]] = [
    ("seeds", 1, "", ["unknown key 'seeds'", "Did you mean 'seed'?"]),
    ("stream.widow", "1d", "", ["unknown key 'widow'", "Did you mean 'window'?"]),
    ("stream.source.dayz", 3, "", ["unknown key 'dayz'", "Did you mean 'days'?"]),
    ("models.fm.backbon", {}, "", ["Did you mean 'backbone'?"]),
    ("models.fm.backbone.layer", 2, "", ["Did you mean 'layers'?"]),
    ("models.fm.sequence_encoder.zzz", 1, "", ["unknown key 'zzz'", "Allowed: ", "hidden"]),
    ("models.fm.optimizer.dens", {}, "", ["Did you mean 'dense'?"]),
    (
        "models.fm.optimizer.dense.schedule",
        {"name": "cosin", "steps": 9},
        "models.fm.optimizer.dense.schedule.name",
        ["'cosin' is not allowed", "Did you mean 'cosine'?"],
    ),
    (
        "models.fm.optimizer.dense.schedule",
        {"name": "linear"},
        "models.fm.optimizer.dense.schedule.steps",
        ["the required key 'steps' is missing"],
    ),
    ("models.fm.optimizer.dense.schedule", "cosine", "", ["must be a mapping {name, steps, floor}", "given: 'cosine'"]),
    ("models.fm.optimizer.dense.warmup", 0, "", ["must be greater than 0", "given: 0"]),
    ("models.fm.optimizer.dense.ema", 1, "", ["must be less than 1", "given: 1"]),
    ("models.fm.optimizer.tables.momentum", 1, "", ["Allowed: eps, lr, name"]),
    ("models.vm.transfer.0.wieght", 1, "", ["Did you mean 'weight'?", "teacher"]),
    ("models.vm.where.surface.off", 1, "", ["Did you mean 'of'?", "bucket"]),
    ("evaluation.skp", 0.5, "", ["Did you mean 'skip'?"]),
    ("plugins.blok", [], "", ["Did you mean 'block'?"]),
    ("parallel.gpus", 1, "", ["unknown key 'gpus'", "device"]),
    ("stream", GONE, "", ["the required key 'stream' is missing"]),
    ("name", GONE, "", ["the required key 'name' is missing"]),
    ("models", GONE, "", ["the required key 'models' is missing"]),
    ("stream.window", GONE, "", ["the required key 'window' is missing"]),
    ("models.fm.backbone", GONE, "", ["the required key 'backbone' is missing"]),
    ("models.vm.transfer.0.teacher", GONE, "", ["the required key 'teacher' is missing"]),
    ("models.vm.where.surface.of", GONE, "", ["the required key 'of' is missing"]),
    ("models", {}, "", ["at least one model"]),
    ("models", None, "", ["must be a mapping", "given: None"]),
    ("models.fm", [], "", ["must be a mapping {backbone, ", "given: []"]),
    (
        "stream",
        3,
        "",
        [
            "must be a mapping {source, window, start, allowed_lateness, chunk_rows, on_bad_row, max_skipped_share}",
            "given: 3",
        ],
    ),
    ("plugins", 3, "", ["must be a mapping {block}"]),
    ("models.vm.optimizer", "adam", "", ["must be a mapping {dense, tables}", "given: 'adam'"]),
    ("models.vm.where", 3, "", ["must be a mapping"]),
    ("name", 3, "", ["must be text", "given: 3"]),
    ("name", "a b", "", ["letters, digits, _ and -", "given: 'a b'"]),
    ("models.9x", {"backbone": {"name": "dlrm"}}, "", ["a key here", "begins with a letter", "given: '9x'"]),
    ("models.a/b", {"backbone": {"name": "dlrm"}}, "", ["letters, digits", "given: 'a/b'"]),
    ("run_dir", 3, "", ["must be text"]),
    ("seed", "x", "", ["must be a whole number", "given: 'x'"]),
    ("seed", -1, "", ["greater than or equal to 0", "given: -1"]),
    ("seed", nan, "", ["must be a finite number", "given: nan"]),
    ("evaluation.skip", nan, "", ["must be a finite number"]),
    ("evaluation.skip", 1.0, "", ["must be less than 1", "given: 1.0"]),
    ("models.vm.embedding_init", inf, "", ["must be a finite number", "given: inf"]),
    ("models.vm.optimizer", {"dense": {"lr": nan}}, "models.vm.optimizer.dense.lr", ["must be a finite number"]),
    ("models.fm.optimizer.dense.name", "adan", "", ["'adan' is not allowed", "Did you mean 'adam'?", "sgd"]),
    ("stream.on_bad_row", "skp", "", ["Did you mean 'skip'?", "error"]),
    ("models.fm.backbone.layers", "two", "", ["must be a whole number", "given: 'two'"]),
    ("models.fm.backbone.layers", 2.5, "", ["must be a whole number", "given: 2.5"]),
    ("models.vm.transfer.0.weight", "heavy", "", ["must be a number"]),
    ("models.vm.transfer.0.weight", nan, "", ["must be a finite number"]),
    ("models.vm.embedding_dim", 6, "", ["must be a multiple of 4", "given: 6"]),
    ("models.vm.control", "perhaps", "", ["no model is called 'perhaps'"]),
    ("models.vm.control", ["fm"], "", ["must be true or false or text"]),
    ("models.vm.head_hidden", 3, "", ["must be a list"]),
    ("models.vm.head_hidden", [64, 0], "models.vm.head_hidden.1", ["must be greater than 0", "given: 0"]),
    ("models.vm.batch_size", 100_000, "", ["100000", "stream.chunk_rows", "16384"]),
    ("stream.source.start", "tomorrow", "", ["given: 'tomorrow'"]),
    ("stream.window", 7, "", ["a duration is a number with a unit", "not 7"]),
    ("stream.window", "7", "", ["a duration is a number with a unit", "not '7'"]),
    ("stream.window", "0d", "", ["must be greater than 0", "given: '0d'"]),
    ("stream.window", "9999999999999999d", "", ["at most 999999999d"]),
    ("models.vm.supervision.delay", "-1d", "", ["a duration is"]),
    ("stream.source", "synthetic_ads", "", ["{name: NAME, field: value}", "one of: ", "given: 'synthetic_ads'"]),
    ("stream.source", None, "", ["{name: NAME, field: value}"]),
    ("stream.source.name", GONE, "stream.source", ["{name: NAME, field: value}", "synthetic_ads"]),
    ("stream.source.name", 3, "stream.source", ["{name: NAME, field: value}"]),
    ("stream.source.name", "synthetic_add", "", ["no data_source", "Did you mean 'synthetic_ads'?"]),
    (
        "models.fm.backbone",
        "wukong",
        "",
        ["a backbone is written {name: NAME, field: value}", "dlrm, ", "wukong; given"],
    ),
    ("models.fm.backbone.name", "wukon", "", ["no backbone is called 'wukon'", "Did you mean 'wukong'?"]),
    ("models.fm.backbone.name", "din", "", ["no backbone is called 'din'", "'din' is a sequence_encoder"]),
    ("models.vm.transfer", "auxiliary_head", "", ["must be a list", "given: 'auxiliary_head'"]),
    ("models.vm.transfer.0", "direct", "", ["a transfer_strategy is written", "given: 'direct'"]),
    ("parallel", "single", "", ["a parallel_plan is written"]),
    ("parallel.name", "singel", "", ["Did you mean 'single'?"]),
    ("models.vm.transfer.0.teacher", "fmm", "", ["no model is called 'fmm'", "Did you mean 'fm'?"]),
    ("models.fm", GONE, "models.vm.transfer.0.teacher", ["no model is called 'fm'"]),
    ("models.vm.transfer.0.teacher", "vm", "models.vm.transfer", ["form a cycle: vm teaches vm"]),
    ("models.fm.transfer", [{"name": "direct", "teacher": "vm"}], ".transfer", ["cycle", "fm teaches vm teaches fm"]),
    ("models.vm.features", ["user_id", "adid"], "", ["no feature 'adid'", "Did you mean 'ad_id'?"]),
    ("models.vm.features", "user_id", "", ["must be a list"]),
    ("models.vm.features", [], "", ["at least one"]),
    ("models.vm.features", ["ad_id", "ad_id"], "", ["each once"]),
    ("models.vm.features", [3], "models.vm.features.0", ["must be text"]),
    ("models.vm.tasks", ["clik"], "", ["no task 'clik'", "Did you mean 'click'?"]),
    ("models.vm.where", {"surfase": 1}, "", ["no column 'surfase'", "Did you mean 'surface'?"]),
    ("models.vm.where", {"history": 1}, "", ["no column 'history'"]),
    ("models.vm.where.surface", 1.5, "", ["must be a mapping {bucket, of}, a list, true or false", "given: 1.5"]),
    ("models.vm.where.surface", None, "", ["a whole number or text", "given: None"]),
    ("models.vm.where.surface", [], "", ["at least one value"]),
    ("models.vm.where.surface", [1, 1.5], "models.vm.where.surface.1", ["a whole number or text", "given: 1.5"]),
    ("models.vm.where.surface.bucket", "x", "", ["must be a whole number or a list", "given: 'x'"]),
    ("models.vm.where.surface.bucket", [0, 2], "", ["from 0 to 1", "given: [0, 2]"]),
    ("models.vm.where.surface.of", 1, "", ["must be greater than 1"]),
    ("run_dir", "${nam}", "", ["'nam' not found", "${key.path}"]),
    ("run_dir", "runs/${models.vm.sead}", "", ["not found"]),
    ("run_dir", "${", "", ["run_dir"]),
    ("run_dir", "${run_dir}", "", ["nterpolation"]),
    ("models.vm.embedding_dim", "???", "", ["embedding_dim"]),
]


def put(tree: Any, path: str, value: Any) -> None:
    """Sets or deletes a node, and creates missing mappings above it."""
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        tree = tree.setdefault(key, {}) if isinstance(tree, dict) else tree[key]
    if value is GONE:
        del tree[last]
    else:
        tree[last] = value


def test_the_experiment_is_valid_to_begin_with(experiment, write):
    assert [arm.name for arm in exfm.load_experiment(write(experiment)).arms] == ["fm", "vm", "vm.control"]


@pytest.mark.parametrize(
    ("path", "value", "key_path", "words"), MISTAKES, ids=[f"{m[0]}={'' if m[1] is GONE else m[1]}" for m in MISTAKES]
)
def test_a_mistake_is_told_in_one_paragraph(path, value, key_path, words, experiment, write):
    put(experiment, path, value)
    file = write(experiment)
    with pytest.raises(exfm.ConfigError) as error:
        exfm.load_experiment(file)
    text = str(error.value)
    assert text.startswith(f"{file}: ") and (f"{key_path or path}: " in text), text
    assert all(word in text for word in words), text
    assert "\n" not in text and len(text) < len(file) + 600
    assert "more error" not in text, "one mistake is one error"
    assert not any(word in text for word in ("Input should", "Value error", "pydantic", "{{", "ModelConfig")), text


FILES = {
    "": "the file is empty",
    "# nothing but a comment": "the file is empty",
    "null": "the file is empty",
    "- a": "this is a list",
    "3": "int",
    "just text": "unknown key 'just text'",
    "name: [": "not valid YAML: .* line",
    "\tname: a": "not valid YAML: .* line 1, column 1",
    "name: a\nname: b": "not valid YAML: .*duplicate key name",
    "name: a\n---\nname: b": "not valid YAML: .*single document",
    "name: !!python/object:os.system {}": "not valid YAML",
    "a: &x [*x]": "not valid YAML",
    "? [a]\n: 3": "not valid YAML",
    "null: 3": "key type",
    "1: 2": "unknown key '1'",
}


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_is_no_experiment(text, write):
    file = write(text)
    with pytest.raises(exfm.ConfigError, match=FILES[text]) as error:
        exfm.load_experiment(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["nowhere.yaml", ".", "", "nothing://here.yaml", "bad.yaml"])
def test_a_file_that_cannot_be_read(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfename")
    with pytest.raises(exfm.ConfigError, match="the experiment file cannot be read") as error:
        exfm.load_experiment(path)
    assert str(error.value).startswith(f"{path}: ")


def test_several_mistakes_are_counted(experiment, write):
    experiment |= {"seeds": 1, "sead": 2}
    experiment["models"]["vm"]["where"] = {"surface": {"bucket": "x", "of": 2}, "country": 1.5}
    with pytest.raises(exfm.ConfigError, match=r"\(3 more errors in this file\.\)"):
        exfm.load_experiment(write(experiment))
    del experiment["sead"], experiment["models"]["vm"]["where"]["country"]
    with pytest.raises(exfm.ConfigError, match=r"\(1 more error in this file\.\)"):
        exfm.load_experiment(write(experiment))


def test_a_student_and_a_teacher_without_a_task_in_common(experiment, write):
    experiment["models"]["fm"]["tasks"], experiment["models"]["vm"]["tasks"] = ["conversion"], ["click"]
    with pytest.raises(exfm.ConfigError, match=r"models\.vm\.transfer\.0\.teacher: .*no task in common"):
        exfm.load_experiment(write(experiment))


def test_a_misspelt_required_key_is_shown_as_it_is_spelt(experiment, write):
    experiment["stream"]["widow"] = experiment["stream"].pop("window")
    with pytest.raises(exfm.ConfigError, match=r"stream\.widow: unknown key 'widow'\. Did you mean 'window'\?"):
        exfm.load_experiment(write(experiment))


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ({"name": "a", "kind": "categorical", "rowz": 3}, ["features.0.rowz", "Did you mean 'rows'?", "ids"]),
        ({"name": "a", "kind": "dense", "transfrm": "none"}, ["features.0.transfrm", "Did you mean 'transform'?"]),
        ({"name": "a", "kind": "categorical", "rows": 0}, ["features.0.rows", "greater than 0"]),
        ({"name": "a", "kind": "catgorical"}, ["features.0", "categorical"]),
        ({"name": "a"}, ["features.0", "kind"]),
    ],
)
def test_a_mistake_inside_a_union_of_a_component(feature, words, experiment, write):
    source = {"name": "parquet", "path": "nowhere", "labels": [{"name": "click"}], "features": [feature]}
    experiment["stream"]["source"] = source
    with pytest.raises(exfm.ConfigError) as error:
        exfm.load_experiment(write(experiment))
    assert all(word in str(error.value) for word in words), error.value
    assert "stream.source.features.0" in str(error.value)


def test_a_source_that_cannot_be_had_is_the_users_mistake(experiment, write):
    experiment["stream"]["source"] = {"name": "movielens", "path": "no/such/folder"}
    with pytest.raises(exfm.ConfigError, match=r"stream\.source: .*no/such/folder"):
        exfm.load_experiment(write(experiment))
