"""Says where Taobao's display ads are on the web."""

from __future__ import annotations

from exfm.sources import Download

DOWNLOADS = (
    Download(
        name="taobao_ad",
        title="Ali's display ads on Taobao: 26 million impressions of eight days",
        licence="terms of Tianchi: non-commercial",
        home="https://tianchi.aliyun.com/dataset/56",
        folder="taobao",
        by_hand="Tianchi gives it to those who log in. Download raw_sample.csv, ad_feature.csv, user_profile.csv and "
        "behavior_log.csv from https://tianchi.aliyun.com/dataset/56, and unpack them into the folder taobao",
        example="examples/data/taobao_ad.yaml",
    ),
)
