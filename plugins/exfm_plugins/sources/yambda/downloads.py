"""Lists the sizes of Yambda on the web."""

from __future__ import annotations

from exfm.sources import Download, RemoteFile

# A revision, because `main` may move; it names the files, so that a later download has the same.
_URL = "https://huggingface.co/datasets/yandex/yambda/resolve/dd6f3a19eef5866e346c3270e098baa641a44948"


def _size(size: str, title: str) -> Download:
    """Describes a size; the mappings of tracks to artists and albums are those of all sizes."""
    return Download(
        name=f"yambda_{size}",
        title=f"Yambda: {title}",
        licence="Apache-2.0",
        home="https://huggingface.co/datasets/yandex/yambda",
        folder=f"yambda-{size}",
        # No checksum of these files is published where it could be read without a download.
        files=(
            RemoteFile(f"{_URL}/flat/{size}/multi_event.parquet"),
            RemoteFile(f"{_URL}/artist_item_mapping.parquet"),
            RemoteFile(f"{_URL}/album_item_mapping.parquet"),
        ),
        fields={"path": "{folder}"},
        example="examples/mlperf/dlrm_v4_hstu.yaml" if size == "5b" else "examples/data/yambda.yaml",
    )


DOWNLOADS = (
    _size("50m", "48 million events of 10,000 users of Yandex Music (about 0.4 GB)"),
    _size("500m", "480 million events of 100,000 users of Yandex Music"),
    _size("5b", "4.8 billion events of a million users of Yandex Music (about 50 GB)"),
)
