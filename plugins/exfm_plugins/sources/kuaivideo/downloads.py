"""Lists the release of KuaiVideo on the web."""

from __future__ import annotations

from exfm.sources import Checksum, Download, RemoteFile

# At the revision whose checksum is below; `main` may move.
_URL = "https://huggingface.co/datasets/reczoo/KuaiVideo_x1/resolve/cdb2c1726ec67148c8f79ad620f036db08aa6ac0"
_SHA256 = "5f691030b0d3ddc5a41e1f4732b14200f8fa7fffbd94b0d3801ac08f27bf851e"

DOWNLOADS = (
    Download(
        name="kuaivideo",
        title="KuaiVideo_x1: 13.7 million previews of micro-videos by 10,000 users, as released with BARS",
        licence="none is stated: released by Kuaishou for a challenge of ACM Multimedia 2018",
        home="https://huggingface.co/datasets/reczoo/KuaiVideo_x1",
        folder="kuaivideo",
        files=(
            RemoteFile(
                f"{_URL}/KuaiVideo_x1.zip",
                2_267_289_851,
                Checksum("sha256", _SHA256, "the Hugging Face Hub"),
                ("train.csv", "test.csv"),
            ),
        ),
        must_accept=True,
        fields={"path": "{folder}"},
        example="examples/data/kuaivideo.yaml",
    ),
)
