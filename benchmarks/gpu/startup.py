"""Time to the first batch, with an empty and with a filled compile cache.

`python benchmarks/gpu/startup.py`. Each row is a new process. Compiled rows keep torch's cache, which is where
TORCHINDUCTOR_CACHE_DIR says, in a folder that is empty in the first of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cases import FULL, TINY, backbone_case
from machine import select_device
from report import Cell, Report, start
from timing import synchronize, wall_seconds

from exfm.modeling.compiled_blocks import compile_blocks

COLUMNS = {
    "import s": ".2f",
    "model s": ".2f",
    "first step s": ".2f",
    "second step s": ".3f",
    "first batch s": ".2f",
    "process s": ".2f",
}
CHILD = "--child"
BACKBONE = "wukong"


def measure_here(mode: str, device_name: str, tiny: bool, began: float) -> dict[str, Cell]:
    """Measures the steps of this process, which has just been started.

    Args:
        mode: eager, or a backend of torch.compile.
        began: when it was started, by the clock that all processes of a machine share.
    """
    imported = time.monotonic()
    device = select_device(device_name)
    case = backbone_case(BACKBONE, TINY if tiny else FULL, device)
    synchronize(device)
    built = time.monotonic()
    if mode != "eager":
        compile_blocks([case.backbone], backend=mode)
    first_s = wall_seconds(case.step, device)
    first_batch = time.monotonic()
    return {
        "import s": imported - began,
        "model s": built - imported,
        "first step s": first_s,
        "second step s": wall_seconds(case.step, device),
        "first batch s": first_batch - began,
    }


def measure(report: Report, mode: str, cache: Path) -> dict[str, Cell]:
    """Measures a new process."""
    variables = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
    began = time.monotonic()
    command = [sys.executable, __file__, CHILD, mode, report.device.type, str(int(report.tiny)), str(began)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if answer.returncode:
        raise RuntimeError(answer.stderr[-2000:])
    cells: dict[str, Cell] = json.loads(answer.stdout.splitlines()[-1])
    return {**cells, "process s": time.monotonic() - began}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures eager and compiled starts."""
    report = start("startup", f"Time to the first batch of {BACKBONE}, by the wall clock", COLUMNS, arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = {"eager": "eager", "eager again": "eager", "compiled, cold": "inductor", "compiled, warm": "inductor"}
        for row, mode in rows.items():
            if report.measures(row):
                report.fill(row, partial(measure, report, mode, Path(folder)), "first step s", 30)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        report.note(cache_MB=size / 1e6)
    report.show()


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(measure_here(sys.argv[2], sys.argv[3], sys.argv[4] == "1", float(sys.argv[5]))))
    else:
        main()
