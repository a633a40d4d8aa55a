"""The latent mapping model: image latent in, mask latent out, at one resolution throughout.

Source: Huo et al., Generative Medical Segmentation, AAAI 2025. The paper's Figure 1 orders a block
as Conv, PReLU, GroupNorm; the released code, which this module follows, has GroupNorm, PReLU, Conv.
Parameter names are those of the released code, so that the authors' weights load as they are:
`act1` and `act2` are registered twice there (`resblock.act1` is also `resblock.conv1.1`).
"""

import torch
from torch import Tensor, nn

from lmm.latents import Latents, images_at_a_time, in_batches
from pipeline.device import autocast
from pipeline.errors import UsageError

GROUPS = 16
READ_AT_A_TIME = 64  # latents; a multiple of what any device computes at a time
WIDTH_MULTIPLIERS = (1, 2, 4, 4)


class LatentMappingModel(nn.Module):
    """Z_I → Ẑ_M: a U-shaped network without down-sampling, and a mask latent from each level.

    latent_channels  C, channels of the tokenizer's latent: 4 for SD-VAE and TAESD, 16 for TAESD3
    width            channels of the first level, a multiple of 16; 32 gives 1,564,976 parameters

    forward(z_image)
        z_image  (B, C, h, w) float, scaled latent of the image, any h and w
        returns  {"level3", "level2", "level1", "out"}, each (B, C, h, w): Ẑ_M from the deepest
                 level to the last; `out` is the prediction, `level3` is not supervised in training
        raises   ValueError when z_image is not (B, C, h, w)

    Weights are drawn from torch's global generator: Kaiming normal, fan_out, leaky_relu; biases 0.
    raises   UsageError when the width is not a positive multiple of 16
    source   Huo et al. 2025, section 3; block order of the released code
    """

    def __init__(self, latent_channels: int = 4, width: int = 32) -> None:
        super().__init__()
        _check_sizes(latent_channels, width)
        self.latent_channels = latent_channels
        self.width = width
        c1, c2, c3, c4 = (width * multiplier for multiplier in WIDTH_MULTIPLIERS)
        self.input_blocks = nn.Conv2d(latent_channels, c1, 3, padding=1)
        self.conv1_0 = Block(c1, c1)
        self.conv2_0 = Block(c1, c2)
        self.conv3_0 = Block(c2, c3)
        self.conv4_0 = Block(c3, c4)
        self.conv3_1 = Block(c3 + c4, c3)
        self.conv2_2 = Block(c2 + c3, c2)
        self.conv1_3 = Block(c1 + c2, c1)
        self.conv0_4 = Block(c1 + c1, c1)
        self.convds3 = _head(c3, latent_channels)
        self.convds2 = _head(c2, latent_channels)
        self.convds1 = _head(c1, latent_channels)
        self.convds0 = _head(c1, latent_channels)
        self.apply(_initialise)

    def forward(self, z_image: Tensor) -> dict[str, Tensor]:
        """Ẑ_M of every level; see above."""
        self._check_input(z_image)
        x0 = self.input_blocks(z_image)
        x1 = self.conv1_0(x0)
        x2 = self.conv2_0(x1)
        x3 = self.conv3_0(x2)
        x4 = self.conv4_0(x3)
        x3_1 = self.conv3_1(torch.cat([x3, x4], dim=1))
        x2_2 = self.conv2_2(torch.cat([x2, x3_1], dim=1))
        x1_3 = self.conv1_3(torch.cat([x1, x2_2], dim=1))
        x0_4 = self.conv0_4(torch.cat([x0, x1_3], dim=1))
        return {
            "level3": self.convds3(x3_1),
            "level2": self.convds2(x2_2),
            "level1": self.convds1(x1_3),
            "out": self.convds0(x0_4),
        }

    @property
    def parameter_count(self) -> int:
        """Numbers in all weights, each once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _check_input(self, z_image: Tensor) -> None:
        if z_image.ndim != 4 or z_image.shape[1] != self.latent_channels:
            raise ValueError(
                f"z_image has shape {tuple(z_image.shape)}; this model maps latents of "
                f"{self.latent_channels} channels, shape (B, {self.latent_channels}, h, w)"
            )


@torch.inference_mode()
def predict_latents(model: nn.Module, latents: Latents, precision: str = "fp32") -> Tensor:
    """Ẑ_M of every clean image of a split, in order: (n, C, h, w) float32, scaled.

    model  z_image → {"out": Ẑ_M, …}, both (B, C, h, w)
    """

    def predict(z_image: Tensor) -> Tensor:
        with autocast(latents.device, precision):
            z_mask_hat: Tensor = model(z_image)["out"]
        return z_mask_hat.float()

    was_training = model.training
    model.eval()
    predictions: list[Tensor] = []
    for batch in latents.clean(READ_AT_A_TIME):
        predictions += in_batches(predict, batch.z_image, images_at_a_time(latents.device))
    model.train(was_training)
    return torch.cat(predictions)


class Block(nn.Module):
    """ResBlock, then Attention."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.resblock = ResBlock(channels_in, channels_out)
        self.attention = Attention(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) → (B, o, h, w)."""
        out: Tensor = self.attention(self.resblock(x))
        return out


class ResBlock(nn.Module):
    """skip(x) + h with h = Conv(PReLU₂(GN(Conv(PReLU₁(GN(x)))))), (B, i, h, w) → (B, o, h, w)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.act1 = nn.PReLU()
        self.act2 = nn.PReLU()
        self.conv1 = nn.Sequential(
            _group_norm(channels_in), self.act1, nn.Conv2d(channels_in, channels_out, 3, padding=1)
        )
        self.conv2 = nn.Sequential(
            _group_norm(channels_out),
            self.act2,
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        self.skip_connection = (
            nn.Identity()
            if channels_in == channels_out
            else nn.Conv2d(channels_in, channels_out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) → (B, o, h, w)."""
        h = self.conv2(self.conv1(x))
        out: Tensor = self.skip_connection(x) + h
        return out


class Attention(nn.Module):
    """x + proj_out(softmax(q·kᵀ/√c)·v), one head over all h·w positions of GN(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = channels**-0.5
        self.norm = _group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w), and the same shape back."""
        # Positions first, channels last: products of matrices that lie otherwise are copied before
        # each, which costs more than the products.
        h = self.norm(x).flatten(2).mT.contiguous()
        q, k, v = (_at_each_position(conv, h) for conv in (self.q, self.k, self.v))
        # Written out: under bf16 on a CPU a training step takes a third less time than with torch's
        # fused attention. Scaling q touches c values a position where scaling q·kᵀ touches h·w.
        attention = torch.softmax((q * self.scale) @ k.mT, dim=2)
        h = _at_each_position(self.proj_out, attention @ v)
        return x + h.mT.reshape(x.shape)


def _at_each_position(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution of positions with their channels last, (B, h·w, i) → (B, h·w, o)."""
    # A product an image. In one product of them all the last bits of a row depend on its place.
    assert conv.bias is not None
    weight = conv.weight.flatten(1).mT.expand(len(x), -1, -1)
    return torch.baddbmm(conv.bias, x, weight)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def _head(channels: int, latent_channels: int) -> nn.Sequential:
    """Features of one level → its Ẑ_M."""
    conv = nn.Conv2d(channels, latent_channels, 3, padding=1, bias=False)
    return nn.Sequential(_group_norm(channels), nn.SiLU(), conv)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_sizes(latent_channels: int, width: int) -> None:
    if latent_channels < 1:
        raise UsageError(
            f"latent channels must be at least 1, not {latent_channels}",
            "take the tokenizer's own: 4 for sd-vae and taesd, 16 for taesd3",
        )
    if width < GROUPS or width % GROUPS:
        nearest = max(1, round(width / GROUPS)) * GROUPS
        raise UsageError(
            f"width {width} cannot be divided into the {GROUPS} groups of every GroupNorm",
            f"use a multiple of {GROUPS}, such as --width {nearest}",
        )
