"""On the synthetic source, whose conversions are known a day late: no conversion is used before its time."""

from __future__ import annotations

from collections.abc import Iterator
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
    """Another source, with the conversions of one day turned around."""

    name: ClassVar[str] = "flipped"

    class Config(exfm.ComponentConfig):
        """Fields of `flipped`."""

        source: Annotated[exfm.components.ComponentSpec, exfm.components.ComponentField("data_source")] = Field(
            description="The other."
        )
        day: int = Field(description="Which day, from the stream's start; -1 for none.")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.source = config.source.build()
        self.day = config.day

    def schema(self) -> exfm.schema.FeatureSchema:
        return self.source.schema()

    def time_range(self) -> exfm.sources.TimeRange:
        return self.source.time_range()

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = WHOLE) -> Iterator[pa.RecordBatch]:
        first = self.time_range().start_us + self.day * DAY_US
        for batch in self.source.read(window, shard):
            time = batch.column("event_time").cast(pa.int64()).to_numpy()
            label = batch.column("conversion").to_numpy(zero_copy_only=False)
            turned = np.where((time >= first) & (time < first + DAY_US), 1 - label, label).astype(label.dtype)
            index = batch.schema.get_field_index("conversion")
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
