"""Lists releases of Amazon's reviews on the web."""

from __future__ import annotations

from exfm.sources import Download, RemoteFile

_SERVER = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"

DOWNLOADS = (
    Download(
        name="amazon_electronics",
        title="Amazon's electronics, 5-core, as released in 2014: 1.7 million reviews",
        licence="none is stated: its authors release it for research and ask to be cited",
        home="https://jmcauley.ucsd.edu/data/amazon/",
        folder="amazon",
        # Nobody publishes checksums, nor the size of the metadata.
        files=(
            RemoteFile(f"{_SERVER}/reviews_Electronics_5.json.gz", 495_854_086),
            RemoteFile(f"{_SERVER}/meta_Electronics.json.gz"),
        ),
        must_accept=True,
        fields={"path": "{folder}/reviews_Electronics_5.json.gz", "meta": "{folder}/meta_Electronics.json.gz"},
        example="examples/data/amazon_reviews.yaml",
    ),
)
