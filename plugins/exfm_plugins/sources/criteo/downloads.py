"""Lists the releases of Criteo's display ads on the web."""

from __future__ import annotations

from exfm.sources import Download, RemoteFile

_LICENCE = "CC BY-NC-SA 4.0: no commercial use"
_HOME = "https://ailab.criteo.com/ressources/"

DOWNLOADS = (
    Download(
        name="criteo",
        title="Criteo's display advertising challenge: 45.8 million ads of seven days",
        licence=_LICENCE,
        home=_HOME,
        folder="criteo",
        files=(
            # Nobody publishes a checksum; the size is that which Criteo's server has named.
            RemoteFile(
                "https://go.criteo.net/criteo-research-kaggle-display-advertising-challenge-dataset.tar.gz",
                4_576_820_670,
                members=("train.txt", "readme.txt"),
            ),
        ),
        must_accept=True,
        fields={"path": "{folder}/train.txt"},
        example="examples/data/criteo.yaml",
    ),
    Download(
        name="criteo_1tb",
        title="Criteo's click logs: 4 billion ads of 24 days",
        licence=_LICENCE,
        home="https://huggingface.co/datasets/criteo/CriteoClickLogs",
        folder="criteo-1tb",
        by_hand="its 24 files take a terabyte unpacked. Download day_0.gz to day_23.gz from "
        "https://huggingface.co/datasets/criteo/CriteoClickLogs, or the days that you need, and unpack them into a "
        "folder; the source then takes path: FOLDER and release: click_logs",
        example="examples/data/criteo.yaml",
    ),
)
