"""New images in, masks at their own size out."""

from lmm.predict.predictor import Predictor, load

__all__ = ["Predictor", "load"]
