"""Lists the release of KuaiRand on the web."""

from __future__ import annotations

from exfm.sources import Checksum, Download, RemoteFile
from exfm_plugins.sources.kuairand.impressions import FILES, RANDOM_FILE, VIDEOS

DOWNLOADS = (
    Download(
        name="kuairand_pure",
        title="KuaiRand-Pure: 1.4 million impressions of Kuaishou's videos by 27,000 users, and 1.2 million at random",
        licence="CC BY-SA 4.0",
        home="https://kuairand.com",
        folder="kuairand",
        # Nobody publishes its size.
        files=(
            RemoteFile(
                "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
                checksum=Checksum("md5", "0820331067a3784d9691136f772b35a7", "Zenodo"),
                members=(*FILES, RANDOM_FILE, VIDEOS),
            ),
        ),
        fields={"path": "{folder}"},
        example="examples/data/kuairand.yaml",
    ),
)
