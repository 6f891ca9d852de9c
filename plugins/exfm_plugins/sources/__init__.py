"""Data sources: logs as a time-ordered stream."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers the built-in sources."""
    return [
        exfm.LazyComponent("amazon_reviews", "exfm_plugins.sources.amazon_reviews.source:AmazonReviews"),
        exfm.LazyComponent("avazu", "exfm_plugins.sources.avazu.source:Avazu"),
        exfm.LazyComponent("combined", "exfm_plugins.sources.combined.source:Combined"),
        exfm.LazyComponent("criteo", "exfm_plugins.sources.criteo.source:Criteo"),
        exfm.LazyComponent("delta", "exfm_plugins.sources.delta.source:Delta"),
        exfm.LazyComponent("huggingface", "exfm_plugins.sources.huggingface.source:HuggingFace"),
        exfm.LazyComponent("iceberg", "exfm_plugins.sources.iceberg.source:Iceberg"),
        exfm.LazyComponent("joined", "exfm_plugins.sources.joined.source:Joined"),
        exfm.LazyComponent("kafka", "exfm_plugins.sources.kafka.source:Kafka"),
        exfm.LazyComponent("kuairand", "exfm_plugins.sources.kuairand.source:KuaiRand"),
        exfm.LazyComponent("kuaivideo", "exfm_plugins.sources.kuaivideo.source:KuaiVideo"),
        exfm.LazyComponent("movielens", "exfm_plugins.sources.movielens.source:MovieLens"),
        exfm.LazyComponent("parquet", "exfm_plugins.sources.parquet.source:Parquet"),
        exfm.LazyComponent("redis_stream", "exfm_plugins.sources.redis_stream.source:RedisStream"),
        exfm.LazyComponent("synthetic_ads", "exfm_plugins.sources.synthetic_ads.source:SyntheticAds"),
        exfm.LazyComponent("taobao_ad", "exfm_plugins.sources.taobao_ad.source:TaobaoAd"),
        exfm.LazyComponent("yambda", "exfm_plugins.sources.yambda.source:Yambda"),
    ]
