"""Says where Avazu's challenge is on the web."""

from __future__ import annotations

from exfm.sources import Download

DOWNLOADS = (
    Download(
        name="avazu",
        title="Avazu's challenge: 40 million mobile ads of ten days",
        licence="rules of the Kaggle competition: academic use, no redistribution",
        home="https://www.kaggle.com/c/avazu-ctr-prediction",
        folder="avazu",
        by_hand="Kaggle gives it to those who log in and accept the competition's rules. Accept them at "
        "https://www.kaggle.com/c/avazu-ctr-prediction, download train.gz, and unpack it to avazu/train.csv",
        example="examples/data/avazu.yaml",
    ),
)
