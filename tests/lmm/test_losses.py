"""The losses, against hand-worked numbers and MONAI's DiceLoss."""

import math
import warnings
from pathlib import Path

import pytest
import torch

from lmm.decoder import MaskDecoder
from lmm.losses import dice_loss, latent_loss, lm_loss, seg_gradient, seg_loss
from lmm.settings import LEVELS
from pipeline.tokenizer import Tokenizer, load_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MONAI's import warns of its own optional dependencies
    from monai.losses import DiceLoss


def latents(*values: float) -> dict[str, torch.Tensor]:
    return {
        level: torch.full((2, 4, 3, 3), value) for level, value in zip(LEVELS, values, strict=True)
    }


def test_supervised_levels_are_the_three_shallowest() -> None:
    assert LEVELS == ("level2", "level1", "out")


def test_latent_loss_is_the_mean_squared_difference() -> None:
    z_mask_hat = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    z_mask = torch.tensor([1.0, 0.0, 6.0, 5.0]).view(1, 4, 1, 1)
    assert latent_loss(z_mask_hat, z_mask).item() == (0 + 4 + 9 + 1) / 4


def test_dice_loss_of_a_half_covered_mask() -> None:
    grey = torch.tensor([[[1.0, 0.5], [0.5, 0.0]]])
    mask = torch.tensor([[[1, 1], [0, 0]]], dtype=torch.uint8)
    assert dice_loss(grey, mask).item() == pytest.approx(1 - 2 * 1.5 / (2 + 2), abs=1e-5)


def test_dice_loss_is_taken_per_image_before_the_mean() -> None:
    mask = torch.zeros(2, 10, 10, dtype=torch.bool)
    mask[0] = True  # 100 pixels, all found
    mask[1, 0, 0] = True  # 1 pixel, missed
    grey = torch.zeros(2, 10, 10)
    grey[0] = 1
    # Summed over the batch first it would be 1 - 200/201.
    assert dice_loss(grey, mask).item() == pytest.approx(0.5, abs=1e-4)


def test_an_empty_mask_costs_the_cross_entropy_with_nothing() -> None:
    empty = torch.zeros(1, 2, 2)
    assert dice_loss(torch.zeros(1, 2, 2), empty).item() == 0
    # Half of the pixels at 1/2: half of log 2, but for a margin of 1e-4 in 1.
    half = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])
    assert dice_loss(half, empty).item() == pytest.approx(math.log(2) / 2, abs=1e-4)
    # A false alarm that is sure is as bad as log 10001, not endless.
    assert dice_loss(torch.ones(1, 2, 2), empty).item() == pytest.approx(math.log(10_001), rel=1e-3)


def test_a_false_alarm_has_a_slope_towards_the_logit_of_a_student() -> None:
    logits = torch.full((1, 100, 100), -6.0)
    logits[0, :20, :20] = 3.0
    logits.requires_grad_()
    dice_loss(logits.sigmoid(), torch.zeros(1, 100, 100)).backward()
    assert logits.grad is not None
    # d/dx −log(1 − σ(x)) = σ(x), the mean of 10,000 pixels; a Dice term's slope was below 1e-9.
    slope = logits.grad * 10_000
    assert slope[0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(-3)), rel=0.03)
    assert slope[0, 50, 50].item() == pytest.approx(1 / (1 + math.exp(6)), rel=0.03)


def test_the_slope_of_a_decoder_s_grey_of_1_is_bounded() -> None:
    grey = torch.ones(1, 10, 10, requires_grad=True)
    dice_loss(grey, torch.zeros(1, 10, 10)).backward()
    assert grey.grad is not None
    torch.testing.assert_close(grey.grad * 100, torch.full_like(grey, 10_000), rtol=1e-2, atol=0)


def test_images_with_a_lesion_lose_and_learn_as_without_the_empty_ones() -> None:
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(4, 20, 20, generator=draw) > 0.7
    mask[2] = False
    grey = torch.rand(4, 20, 20, generator=draw).requires_grad_()
    dice_loss(grey, mask).backward()
    with_lesion = [0, 1, 3]
    alone = grey.detach()[with_lesion].requires_grad_()
    (dice_loss(alone, mask[with_lesion]) * 3 / 4).backward()
    assert grey.grad is not None
    torch.testing.assert_close(grey.grad[with_lesion], alone.grad)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_dice_loss_equals_monai_where_there_is_a_lesion(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    grey = torch.rand(5, 17, 13, generator=generator)
    mask = (torch.rand(5, 17, 13, generator=generator) > 0.8).to(dtype)
    grey[2] = 0  # truth only
    expected = DiceLoss()(grey[:, None], mask[:, None].float())
    torch.testing.assert_close(dice_loss(grey, mask), expected, rtol=0, atol=1e-6)


def test_lm_loss_sums_the_three_levels_and_leaves_level3_out() -> None:
    z_mask_hat = latents(1.0, 2.0, 3.0) | {"level3": torch.full((2, 4, 3, 3), 100.0)}
    assert lm_loss(z_mask_hat, torch.zeros(2, 4, 3, 3)).item() == 1 + 4 + 9


def test_losses_are_float32_and_as_exact_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    z_mask_hat = {level: torch.randn(2, 4, 3, 3, generator=generator) for level in LEVELS}
    z_mask = torch.randn(2, 4, 3, 3, generator=generator)
    grey = torch.rand(2, 60, 60, generator=generator)
    mask = torch.rand(2, 60, 60, generator=generator) > 0.5
    expected = lm_loss(z_mask_hat, z_mask), dice_loss(grey, mask)
    with torch.autocast("cpu", torch.bfloat16):
        got = lm_loss(z_mask_hat, z_mask), dice_loss(grey, mask)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    halves = {level: z.bfloat16() for level, z in z_mask_hat.items()}
    assert lm_loss(halves, z_mask.bfloat16()).dtype == torch.float32
    assert dice_loss(grey.bfloat16(), mask).dtype == torch.float32


def test_gradients_flow_to_latents_and_grey_maps() -> None:
    z_mask_hat = {level: z.requires_grad_() for level, z in latents(1.0, 2.0, 3.0).items()}
    lm_loss(z_mask_hat, torch.zeros(2, 4, 3, 3)).backward()
    for z, value in zip(z_mask_hat.values(), (1.0, 2.0, 3.0), strict=True):
        assert z.grad is not None
        torch.testing.assert_close(z.grad, torch.full_like(z, 2 * value / 72))
    grey = torch.full((2, 4, 4), 0.5, requires_grad=True)
    dice_loss(grey, torch.ones(2, 4, 4)).backward()
    assert grey.grad is not None
    # 1 − 2Σg/(16 + Σg) of 16 pixels at 0.5 falls by 2·16/24² for each, half of it per image of two.
    torch.testing.assert_close(grey.grad, torch.full_like(grey, -32 / 24**2 / 2), rtol=1e-4, atol=0)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"z_mask differ in shape: \(2, 4, 3, 3\) and \(4, 3, 3\)"):
        latent_loss(torch.zeros(2, 4, 3, 3), torch.zeros(4, 3, 3))
    with pytest.raises(ValueError, match="grey and mask differ in shape"):
        dice_loss(torch.zeros(2, 4, 4), torch.zeros(1, 4, 4))


@pytest.fixture
def fresh(kl_folder: Path) -> Tokenizer:
    """A tokenizer of the test's own."""
    return load_tokenizer(str(kl_folder))


def levels_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    z_mask_hat = torch.randn(3, 2, 4, 8, 8, generator=draw) * 3
    return z_mask_hat, torch.rand(2, 64, 64, generator=draw) > 0.5


@pytest.mark.parametrize("at_a_time", [1, 4, 100])
def test_the_gradient_in_slices_is_that_of_the_whole(at_a_time: int, fresh: Tokenizer) -> None:
    decoder = MaskDecoder(fresh)
    decoder.at_a_time = at_a_time
    z_mask_hat, mask = levels_and_mask()
    whole = z_mask_hat.clone().requires_grad_()
    # The definition, written out: per image, then the mean over images, then the sum over levels.
    expected = torch.zeros(())
    for level in whole:
        grey, truth = decoder(level).flatten(1), mask.float().flatten(1)
        overlap, area = (grey * truth).sum(1), grey.sum(1) + truth.sum(1)
        expected = expected + (1 - (2 * overlap + 1e-5) / (area + 1e-5)).mean()
    expected.backward()
    loss, gradient = seg_gradient(decoder, z_mask_hat, mask)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, whole.grad, rtol=1e-4, atol=1e-8)
    assert float(gradient.abs().max()) > 0


def test_a_device_short_of_memory_gets_fewer_at_a_time_and_the_same_gradient(
    fresh: Tokenizer,
) -> None:
    class Short(MaskDecoder):
        def __call__(self, z_mask_hat: torch.Tensor) -> torch.Tensor:
            if len(z_mask_hat) > 2:
                raise torch.OutOfMemoryError
            return super().__call__(z_mask_hat)

    z_mask_hat, mask = levels_and_mask()
    short = Short(fresh)
    short.at_a_time = 6
    loss, gradient = seg_gradient(short, z_mask_hat, mask)
    assert short.at_a_time == 1
    roomy = MaskDecoder(fresh)
    roomy.at_a_time = 6
    expected = seg_gradient(roomy, z_mask_hat, mask)
    torch.testing.assert_close((loss, gradient), expected, rtol=1e-4, atol=1e-8)
    short.at_a_time = 1
    with pytest.raises(torch.OutOfMemoryError):
        seg_gradient(NoRoom(fresh), z_mask_hat, mask)


class NoRoom(MaskDecoder):
    def __call__(self, z_mask_hat: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError


def test_the_dice_loss_of_a_step_hands_its_slices_gradient_on(fresh: Tokenizer) -> None:
    z_mask_hat, mask = levels_and_mask()
    loss, gradient = seg_gradient(MaskDecoder(fresh), z_mask_hat, mask)
    levels = z_mask_hat.clone().requires_grad_()
    found = seg_loss(MaskDecoder(fresh), levels, mask)
    (2 * found).backward()
    assert torch.equal(found.detach(), loss)
    assert levels.grad is not None
    assert torch.equal(levels.grad, 2 * gradient)
