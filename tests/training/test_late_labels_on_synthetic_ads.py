"""On the synthetic source, whose conversions are known a day late: no conversion is used before its time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

import exfm
import exfm_plugins.backbones
import exfm_plugins.parallel
import exfm_plugins.sources
import exfm_plugins.transfer
from tests.training.logs import DAY_US, load, predictions, train

CHANGED = 1
WHOLE = exfm.sources.Shard()


class Flipped(exfm.DataSource):
    """Another source, with the labels of one day turned around, and clicks that may be known late."""

    name: ClassVar[str] = "flipped"

    class Config(exfm.ComponentConfig):
        """Fields of `flipped`."""

        source: Annotated[exfm.components.ComponentSpec, exfm.components.ComponentField("data_source")] = Field(
            description="The other."
        )
        day: int = Field(description="Which day, from the stream's start; -1 for none.")
        label: str = Field("conversion", description="Which label.")
        click_delay: exfm.sources.Duration = Field(timedelta(0), description="The delay of clicks.")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.source = config.source.build()
        self.day, self.label, self.click_delay = config.day, config.label, config.click_delay

    def schema(self) -> exfm.schema.FeatureSchema:
        schema = self.source.schema()
        labels: list[exfm.schema.Label] = []
        for label in schema.labels:
            late = label.name == "click"
            labels.append(label.model_copy(update={"delay": self.click_delay}) if late else label)
        return schema.model_copy(update={"labels": tuple(labels)})

    def time_range(self) -> exfm.sources.TimeRange:
        return self.source.time_range()

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = WHOLE) -> Iterator[pa.RecordBatch]:
        first = self.time_range().start_us + self.day * DAY_US
        for batch in self.source.read(window, shard):
            time = batch.column("event_time").cast(pa.int64()).to_numpy()
            label = batch.column(self.label).to_numpy(zero_copy_only=False)
            turned = np.where((time >= first) & (time < first + DAY_US), 1 - label, label).astype(label.dtype)
            index = batch.schema.get_field_index(self.label)
            yield batch.set_column(index, batch.schema.field(index), pa.array(turned, batch.schema.field(index).type))


def test_a_conversion_is_used_a_day_after_its_impression_and_not_before(tmp_path: Path, exfm_registry: Any) -> None:
    exfm_registry.put(
        Flipped,
        exfm_plugins.sources,
        exfm_plugins.backbones,
        exfm_plugins.transfer,
        exfm_plugins.parallel,
    )
    for name, day in (("before", -1), ("after", CHANGED)):
        source = {"name": "synthetic_ads", "days": 4, "rows_per_day": 150, "users": 20, "advertisers": 5}
        config = {
            "name": name,
            "run_dir": str(tmp_path / name),
            "stream": {"source": {"name": "flipped", "source": source, "day": day}, "window": "1d"},
            "models": {
                "fm": {"backbone": {"name": "wukong", "layers": 1}},
                "vm": {"backbone": {"name": "dlrm"}, "transfer": [{"name": "auxiliary_head", "teacher": "fm"}]},
            },
        }
        train(load(tmp_path, config))
    for model in ("fm", "vm"):
        old, new = (predictions(str(tmp_path / name), model) for name in ("before", "after"))
        same = [
            old[day].column("prediction_conversion") == new[day].column("prediction_conversion") for day in range(4)
        ]
        # known during the day after, and learned from when that day has been predicted
        assert same[: CHANGED + 2] == [True] * (CHANGED + 2)
        assert not all(same[CHANGED + 2 :])


def test_labels_that_are_learned_together_wait_for_the_last_of_them(tmp_path: Path, exfm_registry: Any) -> None:
    """Clicks are known 6 hours after the impression, conversions a day after it."""
    exfm_registry.put(Flipped, exfm_plugins.sources, exfm_plugins.backbones, exfm_plugins.parallel)
    source = {"name": "synthetic_ads", "days": 4, "rows_per_day": 150, "users": 20, "advertisers": 5}
    clicks: dict[tuple[str, str], list[pa.ChunkedArray]] = {}
    for name, day, delay in (("before", -1, "6h"), ("after", CHANGED, "6h"), ("equal", -1, "1d")):
        flipped = {"name": "flipped", "source": source, "day": day, "label": "click", "click_delay": delay}
        models = {kind: {"backbone": {"name": "dlrm"}, "late_labels": kind} for kind in ("each", "together")}
        stream = {"source": flipped, "window": "1d"}
        run_dir = str(tmp_path / name)
        train(load(tmp_path, {"name": name, "run_dir": run_dir, "stream": stream, "models": models}))
        for kind in models:
            days = predictions(run_dir, kind)
            clicks[name, kind] = [days[day].column("prediction_click") for day in range(4)]

    def same(kind: str) -> list[bool]:
        return [old == new for old, new in zip(clicks["before", kind], clicks["after", kind], strict=True)]

    # Of the day, 18 hours are known when it ends, and all of it a day later.
    assert same("each") == [True, True, False, False]
    assert same("together") == [True, True, True, False]
    assert clicks["before", "each"] != clicks["before", "together"]
    assert clicks["equal", "each"] == clicks["equal", "together"]
