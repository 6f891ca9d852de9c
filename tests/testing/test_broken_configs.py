"""Components with a fault in the Config or the plugin, and the test of the kit that reports it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_serializer

import exfm
from exfm import ComponentConfig
from tests.testing.sound import SoundBackbone, failures


class IgnoresTypos(SoundBackbone):
    class Config(ComponentConfig):
        model_config = ConfigDict(extra="ignore")


class Changes(SoundBackbone):
    class Config(ComponentConfig):
        model_config = ConfigDict(frozen=False)


class Tower(BaseModel):
    width: int = 3


class SilentInside(SoundBackbone):
    class Config(ComponentConfig):
        tower: Tower = Field(Tower(), description="A tower.")


class WritesWhatItCannotRead(SoundBackbone):
    class Config(ComponentConfig):
        width: PositiveInt = Field(3, description="A width.")

        @field_serializer("width")
        def _write(self, width: int) -> str:
            return f"{width} columns"


class WritesSomethingElse(SoundBackbone):
    class Config(ComponentConfig):
        share: float = Field(1 / 3, description="A share.")

        @field_serializer("share")
        def _write(self, share: float) -> float:
            return round(share, 2)


class WrongDefault(SoundBackbone):
    class Config(ComponentConfig):
        width: PositiveInt = Field(0, description="A width.")


class Nameless(SoundBackbone):
    name = "Sound Backbone"


def test_configs() -> None:
    assert failures(IgnoresTypos) == {
        "unknown_fields_are_refused": "IgnoresTypos.Config takes a field it does not have; keep extra='forbid'"
    }
    assert failures(Changes) == {"config_is_immutable": "Changes.Config can be changed; keep frozen=True"}
    assert failures(SilentInside) == {
        "schema_describes_every_field": "SilentInside.Config: no description for Tower.width; "
        "add Field(description=...)"
    }
    unreadable = failures(WritesWhatItCannotRead)
    assert unreadable.keys() == {"config_survives_being_written_down"}
    other = failures(WritesSomethingElse)
    assert other.keys() == {"config_survives_being_written_down"}
    assert "became Config(share=0.33)" in other["config_survives_being_written_down"]
    assert "greater than 0" in failures(WrongDefault)["defaults_are_valid"]


def test_a_name_that_yaml_would_need_quotes_for() -> None:
    assert "must be a lower-case identifier" in failures(Nameless)["is_a_named_component"]


def plugin_of(*offers: Any) -> Any:
    plugin: Any = ModuleType("plugin_of_a_test")

    @exfm.hookimpl
    def exfm_register_backbones():
        return list(offers)

    plugin.exfm_register_backbones = exfm_register_backbones
    return plugin


def test_what_the_plugin_offers() -> None:
    class Twin(SoundBackbone):
        pass

    here = exfm.LazyComponent("sound", "tests.testing.sound:SoundBackbone")
    misspelt = exfm.LazyComponent("sund", "tests.testing.sound:SoundBackbone")
    assert not failures(SoundBackbone, plugin=plugin_of(SoundBackbone))
    assert not failures(SoundBackbone, plugin=plugin_of(here))
    assert "plugin_of_a_test offers" in failures(SoundBackbone, plugin=plugin_of(Twin))["plugin_offers_it"]
    messages = failures(SoundBackbone, plugin=plugin_of(misspelt))
    assert "no backbone is called 'sound'. Did you mean 'sund'" in messages["plugin_offers_it"]
    assert "it offers nothing" in failures(SoundBackbone, plugin=ModuleType("empty"))["plugin_offers_it"]
