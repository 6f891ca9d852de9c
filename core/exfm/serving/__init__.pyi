"""The public names of exfm.serving, and the modules that define them."""

from exfm.serving.predictor import Predictor as Predictor
from exfm.serving.predictor import load as load

__all__: list[str]
