"""Training speed beside the peers, side by side in a run, in turns; and beside the machine's limits.

    benchmarks/speed/setup.sh                    # FuxiCTR, DeepCTR-Torch, torch-rechub in .venv-peers
    python benchmarks/speed/bench.py --repeats 3

Every measurement is a process of its own. Of each case all sides run once, then again, and the medians are compared:
other work of the machine falls on all alike. exfm is measured from Parquet to committed windows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from rows import write

HERE = Path(__file__).parent
Figures = dict[str, Any]


def variants(has_bf16: bool) -> dict[str, Figures]:
    """How exfm computes, by name."""
    return {"exfm fp32": {}} | ({"exfm bf16": {"precision": "bf16"}} if has_bf16 else {})


def called(python: Path, script: str, *arguments: str) -> Figures:
    """The last line of a script's output, read as JSON."""
    done = subprocess.run([python, HERE / script, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr}")
    told: Figures = json.loads(done.stdout.splitlines()[-1])
    return told


def measure_case(name: str, case: Figures, machine: Figures, arguments: argparse.Namespace) -> dict[str, list[Figures]]:
    """The figures of all sides of a case, in turns."""
    rows = arguments.out / f"{name}.parquet"
    write(rows, case["rows"], case["table_rows"], windows=4)
    log = ["--rows", str(rows), "--table-rows", str(case["table_rows"]), "--threads", str(arguments.threads)]
    settings = case["settings"]
    common = {"embedding_dim": settings["dim"], "batch_size": settings["batch_size"]}
    found: dict[str, list[Figures]] = {}
    for turn in range(arguments.repeats):
        for library in case["peers"]:
            given = ["--library", library, "--model", case["model"], "--settings", json.dumps(settings)]
            told = called(arguments.environment / "bin" / "python", "peers.py", *log, *given)
            found.setdefault(library, []).append(told)
        for variant, fields in variants(machine["has_bf16"]).items():
            model = case["exfm"] | common | fields
            found.setdefault(variant, []).append(
                called(Path(sys.executable), "ours.py", *log, "--model", json.dumps(model), "--save-in-background")
            )
        print(f"{name}: {turn + 1} of {arguments.repeats}", file=sys.stderr, flush=True)
    return found


def table(name: str, found: dict[str, list[Figures]], machine: Figures) -> str:
    """Medians of a case, with ratios to each peer and the share of the machine's rate of products.

    Of a second of the clock and of a second of the processor: other work of the machine leaves the latter nearly alone.
    """
    kinds = ("examples_per_second", "examples_per_cpu_second")
    speeds = {side: [median(figures[kind] for figures in several) for kind in kinds] for side, several in found.items()}
    peers = [side for side in found if not side.startswith("exfm")]
    against = [f"x {peer}" for peer in peers]
    header = ["", "examples/s", *against, "per CPU second", *against, "of the matmul rate", "start, s"]
    lines = [f"### {name}", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for side, own in speeds.items():
        cells = [side]
        for place, speed in enumerate(own):
            cells += [f"{speed:,.0f}", *(f"{speed / speeds[peer][place]:.2f}" for peer in peers)]
        if side not in peers:
            rate = machine["bf16_gflops" if "bf16" in side else "fp32_gflops"]
            # A training step takes about three forward passes.
            cells.append(f"{3 * found[side][0]['flops_per_example'] * own[0] / 1e9 / rate:.0%}")
            cells.append(", ".join(f"{figures['first_chunk_s']:.1f}" for figures in found[side]))
        lines.append(f"| {' | '.join([*cells, *[''] * (len(header) - len(cells))])} |")
    return "\n".join(lines)


def main() -> None:
    """Measures all cases and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="names of cases.yaml, with commas; all of them by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environment", type=Path, default=Path(".venv-peers"))
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    arguments = parser.parse_args()
    cases: dict[str, Figures] = yaml.safe_load((HERE / "cases.yaml").read_text())
    chosen = arguments.cases.split(",") if arguments.cases else list(cases)
    machine = called(Path(sys.executable), "machine.py", "--threads", str(arguments.threads))
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for name in chosen:
        print("\n" + table(name, measure_case(name, cases[name], machine, arguments), machine), flush=True)


if __name__ == "__main__":
    main()
