"""One step of a network in pixels: its loss, and all that it keeps."""

import warnings

import small
import torch

from lmm.baseline.learner import PixelLearner, dice_and_cross_entropy
from lmm.baseline.network import build_network
from lmm.baseline.pixels import PixelBatch
from lmm.baseline.settings import BaselineSettings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MONAI's import warns of its own optional dependencies
    from monai.losses import DiceCELoss


def test_the_loss_is_monai_s() -> None:
    torch.manual_seed(0)
    logits, mask = 4 * torch.randn(5, 16, 16), torch.rand(5, 16, 16) > 0.7
    mask[0] = False
    parts = dice_and_cross_entropy(logits, mask)
    expected = DiceCELoss(sigmoid=True)(logits[:, None], mask[:, None].float())
    assert torch.allclose(sum(parts.values()), expected, atol=1e-6)


def test_a_learner_put_back_goes_on_to_the_same_bits_with_its_running_means() -> None:
    def fresh(seed: int) -> PixelLearner:
        torch.manual_seed(seed)
        settings = BaselineSettings(model="attention-unet", size=small.SIZE_PX)
        return PixelLearner(build_network("attention-unet", small.SIZE_PX), settings)

    def batch(seed: int) -> PixelBatch:
        draw = torch.Generator().manual_seed(seed)
        image = torch.rand(2, 3, small.SIZE_PX, small.SIZE_PX, generator=draw) * 2 - 1
        return PixelBatch(image, image[:, 0] > 0)

    whole = fresh(0)
    whole.step(batch(0))
    saved = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    assert any(name.endswith("running_mean") for name in saved)
    again = fresh(1)
    again.load(saved)
    whole.step(batch(1))
    again.step(batch(1))
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
