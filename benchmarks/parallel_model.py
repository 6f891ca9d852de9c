"""A model of the step time at 256 to 4,096 GPUs: `python benchmarks/parallel_model.py`.

Time per example and GPU, in microseconds, with N GPUs in a sharding group and M groups:

    t(N, M) = c + a (N - 1) + s 2 (M - 1) / M

c: a GPU's computation for its own rows, however many GPUs there are. a: the time that each further member of a group
adds, as all of a group wait for the member with most to do, and exchange rows with all. s: the all-reduce of a GPU's
shard over the groups, in a ring. Each is fitted to another of three published figures (arXiv 2508.03854), so that the
model confirms
nothing: it says their meaning together, under its assumptions, for other numbers of GPUs and groups.
"""

from __future__ import annotations

from dataclasses import dataclass

PUBLISHED = {(256, 1): 1.53e6, (256, 4): 2.66e6}  # examples per second by GPUs and groups
SCALING = 0.90  # of the rate per GPU that 256 GPUs in groups of 64 have, at 4,096
GROUP = 64
GPUS = (256, 512, 1024, 2048, 4096)


def ring(groups: int) -> float:
    """Of the bytes that a GPU keeps, how much it sends to average it over the groups."""
    return 2 * (groups - 1) / groups


@dataclass(frozen=True)
class Model:
    """The three constants, in microseconds per example and GPU."""

    compute: float
    member: float
    sync: float

    def time_us(self, gpus: int, groups: int) -> float:
        """t(N, M)."""
        return self.compute + self.member * (gpus // groups - 1) + self.sync * ring(groups)

    def rate(self, gpus: int, groups: int) -> float:
        """Examples per second."""
        return gpus / self.time_us(gpus, groups) * 1e6


def fitted() -> Model:
    """The constants with which the three figures come out."""
    whole, grouped = (gpus / rate * 1e6 for (gpus, _), rate in PUBLISHED.items())
    largest = GPUS[-1] // GROUP
    sync = grouped * (1 / SCALING - 1) / (ring(largest) - ring(4))
    member = (whole - grouped + sync * ring(4)) / (256 - GROUP)
    return Model(grouped - sync * ring(4) - member * (GROUP - 1), member, sync)


def main() -> None:
    """Prints the constants, and examples per second by GPUs and size of a group."""
    model = fitted()
    print(f"c = {model.compute:.1f} us, a = {model.member:.3f} us, s = {model.sync:.1f} us per example and GPU\n")
    sizes = (0, 256, 128, 64, 32)
    print("| GPUs | " + " | ".join("one group" if not size else f"groups of {size}" for size in sizes) + " |")
    print("|" + "---|" * (len(sizes) + 1))
    for gpus in GPUS:
        groups = [gpus // size if size else 1 for size in sizes]
        cells = [
            f"{model.rate(gpus, count) / 1e6:.2f}M, {model.time_us(gpus, count):.0f} us"
            + (" (published)" if (gpus, count) in PUBLISHED or (gpus, count) == (4096, 64) else "")
            for count in groups
        ]
        print(f"| {gpus:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
