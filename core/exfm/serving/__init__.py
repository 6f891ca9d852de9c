"""What is served: a model's export, predictions with it, and batch predictions of a snapshot."""

from __future__ import annotations

from exfm.serving.loading import Predictor, load

__all__ = ["Predictor", "load"]
