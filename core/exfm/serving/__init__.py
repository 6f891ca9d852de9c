"""Exports models, predicts with exports, and predicts a stream with a snapshot."""

from __future__ import annotations

from exfm.serving.predictor import Predictor, load

__all__ = ["Predictor", "load"]
