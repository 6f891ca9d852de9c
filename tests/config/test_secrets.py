"""Tests secrets: references are written and printed, and values stay in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

import exfm
from exfm.experiment.sweep import plan_sweep
from exfm.redaction import concealed, redact, same_but_for_credentials, without_credentials

SECRET = "hunter2-of-the-broker"


@pytest.fixture
def broker(experiment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An experiment on a stream whose password is in the environment; no broker is asked before a run."""
    monkeypatch.setenv("EXFM_TEST_PASSWORD", SECRET)
    monkeypatch.setenv("EXFM_TEST_WINDOW", "1d")
    experiment["stream"]["source"] = {
        "name": "redis_stream",
        "url": "redis://trainer:${oc.env:EXFM_TEST_PASSWORD}@127.0.0.1:1/0",
        "stream": "impressions",
        "labels": [{"name": "click"}],
        "features": [
            {"name": name, "kind": "categorical", "rows": 64} for name in ("user_id", "ad_id", "surface", "country")
        ],
    }
    experiment["models"]["fm"].pop("sequence_encoder")
    experiment["stream"]["window"] = "${oc.env:EXFM_TEST_WINDOW}"
    return experiment


def test_the_value_is_used_and_the_reference_is_written(broker: Any, write: Any) -> None:
    loaded = exfm.load_experiment(write(broker))
    assert loaded.config.stream.source.config.url == f"redis://trainer:{SECRET}@127.0.0.1:1/0"
    assert loaded.config.stream.window.days == 1
    written = loaded.as_dict()
    assert written["stream"]["source"]["url"] == "redis://trainer:${oc.env:EXFM_TEST_PASSWORD}@127.0.0.1:1/0"
    assert written["stream"]["window"] == "${oc.env:EXFM_TEST_WINDOW}"
    assert SECRET not in json.dumps(written) and SECRET not in loaded.as_yaml()


def test_what_is_written_loads_again_with_the_value(broker: Any, write: Any) -> None:
    broker["models"]["vm"]["embedding_dim"] = "${oc.decode:${oc.env:EXFM_TEST_DIM,8}}"
    broker["run_dir"] = "runs/${name}"
    first = exfm.load_experiment(write(broker))
    again = exfm.load_experiment(write(first.as_yaml(), "again.yaml"))
    assert again.config == first.config and again.as_dict() == first.as_dict()
    assert first.as_dict()["run_dir"] == "runs/ads"
    assert first.as_dict()["models"]["vm"]["embedding_dim"] == "${oc.decode:${oc.env:EXFM_TEST_DIM,8}}"


def test_a_reference_to_a_key_that_refers_to_the_environment(broker: Any, write: Any) -> None:
    broker["run_dir"] = "runs/${stream.source.url}"
    broker["models"]["third"] = "${models.vm}"
    broker["models"]["vm"]["tasks"] = ["${oc.env:EXFM_TEST_TASK,click}"]
    loaded = exfm.load_experiment(write(broker))
    assert SECRET in loaded.run_dir and SECRET not in loaded.as_yaml()
    assert loaded.as_dict()["models"]["third"]["tasks"] == ["${oc.env:EXFM_TEST_TASK,click}"]
    assert loaded.config.models["third"].tasks == ("click",)


def test_overrides_refer_to_the_environment_too(broker: Any, write: Any) -> None:
    loaded = exfm.load_experiment(write(broker), ["name=x${oc.env:EXFM_TEST_PASSWORD}"])
    assert loaded.config.name == f"x{SECRET}" and loaded.as_dict()["name"] == "x${oc.env:EXFM_TEST_PASSWORD}"


def test_text_that_looks_like_a_reference_stays_text(experiment: Any, write: Any) -> None:
    experiment["models"]["vm"]["where"] = {"surface": "\\${oc.env:HOME}"}
    first = exfm.load_experiment(write(experiment))
    assert first.config.models["vm"].where["surface"] == "${oc.env:HOME}"
    again = exfm.load_experiment(write(first.as_yaml(), "again.yaml"))
    assert again.config == first.config


def test_a_variable_that_is_not_set_is_named(broker: Any, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXFM_TEST_PASSWORD")
    with pytest.raises(
        exfm.ConfigError, match=r"stream\.source\.url: the environment variable EXFM_TEST_PASSWORD is not"
    ):
        exfm.load_experiment(write(broker))


@pytest.mark.parametrize(
    "key", ["seed", "stream.window", "evaluation.skip", "stream.on_bad_row", "models.fm.backbone.name"]
)
def test_errors_show_the_reference(key: str, broker: Any, write: Any) -> None:
    with pytest.raises(exfm.ConfigError) as error:
        exfm.load_experiment(write(broker), [f"{key}=a${{oc.env:EXFM_TEST_PASSWORD}}"])
    assert "${oc.env:EXFM_TEST_PASSWORD}" in str(error.value) and SECRET not in str(error.value)


def test_an_error_of_the_source_shows_the_reference(broker: Any, write: Any, exfm_cli: Any) -> None:
    broker["stream"]["source"]["stream"] = "${oc.env:EXFM_TEST_PASSWORD}"
    outcome = exfm_cli("run", write(broker))
    assert outcome.status == 2 and "${oc.env:EXFM_TEST_PASSWORD}" in outcome.err
    assert SECRET not in outcome.err + outcome.out


@pytest.fixture
def stored(experiment: dict[str, Any], write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small experiment whose folder is named by a variable."""
    monkeypatch.setenv("EXFM_TEST_FOLDER", str(tmp_path / SECRET))
    experiment["run_dir"] = "${oc.env:EXFM_TEST_FOLDER}"
    experiment["stream"]["source"] |= {"days": 1, "rows_per_day": 120}
    experiment["models"] = {"fm": {"backbone": {"name": "mlp"}, "tasks": ["click"]}}
    experiment["evaluation"] = {"replicates": 100}
    return str(write(experiment))


def test_no_file_of_a_run_or_a_sweep_has_the_value(stored: str, tmp_path: Path, exfm_cli: Any) -> None:
    outcome = exfm_cli(
        "sweep", stored, "--over", "seed=1", "stream.source.seed=${oc.decode:${oc.env:EXFM_TEST_SEED,7}}"
    )
    assert outcome.status == 0, outcome.err
    files = [file for file in (tmp_path / SECRET).rglob("*") if file.is_file()]
    assert any(file.name == "config.yaml" for file in files) and any(file.name == "report.html" for file in files)
    for file in files:
        assert SECRET.encode() not in file.read_bytes(), file


def test_another_value_of_the_variable_is_no_other_experiment(
    stored: str, tmp_path: Path, exfm_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXFM_TEST_SEED", "1")
    override = "stream.source.seed=${oc.env:EXFM_TEST_SEED}"
    assert exfm_cli("run", stored, override).status == 0
    monkeypatch.setenv("EXFM_TEST_SEED", "2")
    assert exfm_cli("run", stored, override).status == 0
    assert exfm_cli("run", stored, "stream.source.seed=3").status == 2


URLS = [
    ("redis://trainer:hunter2@host:1/0", "redis://***@host:1/0"),
    ("redis://:hunter2@host", "redis://***@host"),
    ("https://ghp_token@host/x", "https://***@host/x"),
    ("cannot read 'ftp://u:p@ss@host/x', nor ftp://u:p@h", "cannot read 'ftp://***@host/x', nor ftp://***@h"),
    ("simplecache::ftp://u:p@host/x", "simplecache::ftp://***@host/x"),
    ("redis://u:${oc.env:P}@host", "redis://u:${oc.env:P}@host"),
    ("redis://u:${oc.env:P,plain}@host", "redis://u:${oc.env:P}@host"),
    ("redis://${oc.env:U}:plain@host", "redis://***@host"),
    ("https://h/f?token=abc&x=1&X-Amz-Signature=ff", "https://h/f?token=***&x=1&X-Amz-Signature=***"),
    ("https://h/f?sv=1&sig=a%3D", "https://h/f?sv=1&sig=***"),
    ("https://h/f?AWSAccessKeyId=AKIA&monkey=3", "https://h/f?AWSAccessKeyId=***&monkey=3"),
    ("https://h/f?token=${oc.env:T}", "https://h/f?token=${oc.env:T}"),
    ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
    ("abfs://container@account/x", "abfs://container@account/x"),
    ("a@b: no URL at all", "a@b: no URL at all"),
]


@pytest.mark.parametrize(("text", "expected"), URLS)
def test_urls_are_written_without_credentials(text: str, expected: str) -> None:
    assert without_credentials(text) == expected
    assert redact(text) == expected and without_credentials(expected) == expected


def test_text_under_the_name_of_a_secret_is_not_written() -> None:
    names = ["sasl.oauthbearer.config", "sasl.jaas.config", "s3.secret-access-key", "x.Authorization"]
    hidden = dict.fromkeys([*names, "adls.account-key", "adls.connection-string"], "***")
    assert concealed(dict.fromkeys(hidden, "a b c")) == hidden
    tree = {"options": [{"password": "a", "aws_secret_access_key": "b", "token": "${oc.env:T}", "key": "row"}]}
    expected = {"options": [{"password": "***", "aws_secret_access_key": "***", "token": "${oc.env:T}", "key": "row"}]}
    assert concealed(tree) == expected


def test_who_logs_in_is_no_difference() -> None:
    assert same_but_for_credentials("redis://***@h/0", "redis://u:${oc.env:P}@h/0")
    assert same_but_for_credentials("https://h/f?sig=1&x=1", "https://h/f?sig=2&x=1")
    assert not same_but_for_credentials("redis://a:b@h/0", "redis://a:b@h/1")
    assert not same_but_for_credentials(1, 2) and same_but_for_credentials([1], [1])


def test_a_password_in_the_file_is_not_printed(broker: Any, write: Any, exfm_cli: Any) -> None:
    broker["stream"]["source"]["url"] = "redis://trainer:plain-password@127.0.0.1:1/0"
    shown = exfm_cli("run", write(broker), "--print-config")
    assert yaml.safe_load(shown.out)["stream"]["source"]["url"] == "redis://***@127.0.0.1:1/0"
    assert "plain-password" not in exfm_cli("run", write(broker), "stream.source.url.x=1").err


def test_a_traceback_and_a_warning_have_no_value(broker: Any, write: Any) -> None:
    broker["stream"]["source"]["stream"] = "${oc.env:EXFM_TEST_PASSWORD}"
    code = (
        "import logging, sys\n"
        "import exfm.cli.main as main\n"
        f"sys.argv = ['exfm', '--debug', 'run', {write(broker)!r}]\n"
        "try:\n    main.main()\n"
        f"finally:\n    logging.getLogger('exfm').warning('redis://u:{SECRET}@host')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Traceback" in done.stderr and "redis://u:${oc.env:EXFM_TEST_PASSWORD}@host" in done.stderr
    assert SECRET not in done.stderr


def test_a_sweep_over_urls_names_no_credentials(broker: Any, write: Any, tmp_path: Path) -> None:
    broker["run_dir"] = str(tmp_path / "run")
    urls = ("redis://u:plain-password@h:1/0", "redis://u:plain-password@h:1/1")
    sweep = plan_sweep(write(broker), {"stream.source.url": urls})
    assert [point.experiment.config.stream.source.config.url for point in sweep.points] == list(urls)
    shown = [sweep.axes, *((point.label, point.experiment.run_dir) for point in sweep.points)]
    assert "plain-password" not in unquote(json.dumps(shown))
    with pytest.raises(exfm.ConfigError, match="credentials alone") as error:
        plan_sweep(write(broker), {"stream.source.url": ("redis://a:plain-password@h", "redis://b:plain-password@h")})
    assert "plain-password" not in str(error.value)
