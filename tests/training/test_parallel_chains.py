"""Under every plan a run goes from a single process to four, to two, whose tables have grown, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import torchrun
from tests.training import parallel_worker
from tests.training.logs import predictions
from tests.training.test_parallel import EXACT, FM_ALONE, GROWN, HALVES, SGD, Runs, furthest, write_days

PLANS = {
    "ddp": ["parallel.name=ddp"],
    "hsdp": ["parallel.name=hsdp"],
    "hsdp_2d": [f"parallel={{name: hsdp_2d, tables: {{user: {HALVES}, item: {HALVES}}}}}"],
    "replicas": ["parallel={name: hsdp_2d, replicas: 2}", *SGD[:1]],
}


@pytest.mark.soak
def test_every_plan_loads_the_shards_of_any_other_number_of_processes(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    write_days(tmp_path)
    for name, optimizer in (("grown", []), ("grown_sgd", SGD[:1])):
        runs.here(runs.job(name, *optimizer, days=2, **FM_ALONE))
        runs.here(runs.job(name, *optimizer, GROWN, **FM_ALONE))
    optimizers = {name: SGD[:1] if name == "replicas" else [] for name in PLANS}
    for name, optimizer in optimizers.items():
        runs.here(runs.job(name, *optimizer, days=1, **FM_ALONE))
    four = [runs.job(name, *overrides, days=2, **FM_ALONE) for name, overrides in PLANS.items()]
    torchrun(parallel_worker.main, four, tmp_path / "unused", processes=4)
    two = [runs.job(name, *overrides, GROWN, days=3, **FM_ALONE) for name, overrides in PLANS.items()]
    torchrun(parallel_worker.main, two, tmp_path / "unused", processes=2)
    for name, optimizer in optimizers.items():
        runs.here(runs.job(name, *optimizer, GROWN, **FM_ALONE))
        actual = predictions(str(runs.run_dir(name)), "fm")
        expected = predictions(str(runs.run_dir("grown_sgd" if optimizer else "grown")), "fm")
        assert actual.keys() == expected.keys() == {0, 1, 2, 3}
        far = max(furthest(actual[window], expected[window]) for window in expected)
        assert far < EXACT, (name, far)
