"""New images in, masks at their own size out."""

from lmm.predict.loading import load
from lmm.predict.predictor import Predictor

__all__ = ["Predictor", "load"]
