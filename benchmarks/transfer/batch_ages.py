"""How far behind the first example of their batch a model's examples stand: how old its own rows are when read.

python benchmarks/transfer/batch_ages.py examples/paper/single_vm_movielens.yaml vm stream.source.path=FOLDER
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch

import exfm
from exfm.data.stream import ChunkReader
from exfm.data.windows import stream_windows

sys.path.insert(0, str(Path(__file__).parent.parent / "quality"))
from streams import first_scored, rows_by_window


def main() -> None:
    """Prints quartiles in minutes, of the examples that the figures cover."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("model")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    experiment = exfm.load_experiment(arguments.config, arguments.overrides)
    ages_us = batch_ages(experiment, arguments.model)
    quartiles = ", ".join(f"{value / 60e6:.1f}" for value in np.percentile(ages_us, [25, 50, 75]))
    print(f"{arguments.model}: {ages_us.size} rows, minutes behind the first of the batch, quartiles: {quartiles}")


def batch_ages(experiment: exfm.Experiment, model: str) -> np.ndarray:
    """Microseconds between each example and the first of its batch."""
    stream, config = experiment.config.stream, experiment.config.models[model]
    reader = ChunkReader(experiment.source, experiment.schema, stream, {model: config.where}, exfm.sources.Shard())
    first_us = first_scored(rows_by_window(experiment), experiment.config.evaluation.skip)
    ages = []
    for window in stream_windows(experiment.source, stream.window):
        for chunk in reader.read(window) if window.start_us >= first_us else ():
            picked = chunk.rows[model]
            times = chunk.batch.event_time_us if picked is None else chunk.batch.event_time_us[picked]
            if times.numel():
                batches = times.tensor_split(math.ceil(times.numel() / config.batch_size))
                ages.append(torch.cat([batch - batch[0] for batch in batches]).numpy())
    return np.concatenate(ages)


if __name__ == "__main__":
    main()
