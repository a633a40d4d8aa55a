"""The latent mapping model: its size, its formulas, and the authors' weights in it."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from lmm.model import Attention, LatentMappingModel, ResBlock
from pipeline.errors import UsageError

LEVELS = {"level3", "level2", "level1", "out"}


@pytest.fixture
def small_model() -> LatentMappingModel:
    torch.manual_seed(0)
    return LatentMappingModel(width=16)


def test_default_model_has_1_564_976_parameters() -> None:
    assert sum(p.numel() for p in LatentMappingModel().parameters()) == 1_564_976


def test_state_dict_has_the_196_entries_of_the_released_code() -> None:
    names = LatentMappingModel().state_dict().keys()
    assert len(names) == 196
    assert {
        "input_blocks.weight",
        "conv1_0.resblock.act1.weight",
        "conv1_0.resblock.conv1.1.weight",
        "conv2_2.resblock.skip_connection.weight",
        "conv0_4.attention.proj_out.bias",
        "convds3.2.weight",
    } <= names


def test_act1_is_the_activation_inside_conv1() -> None:
    block = ResBlock(16, 16)
    assert block.act1.weight is block.conv1[1].weight
    assert block.act2.weight is block.conv2[1].weight


def test_authors_checkpoint_loads_strictly_and_computes_what_it_should(assets: Path) -> None:
    weights = torch.load(assets / "vectors" / "gms_checkpoint.pth", weights_only=True)["model"]
    vectors = load_file(assets / "vectors" / "gms_outputs.safetensors")
    model = LatentMappingModel()
    model.load_state_dict(weights, strict=True)
    assert list(model.state_dict()) == list(weights)
    with torch.no_grad():
        outputs = model(vectors["input"])
    for level in LEVELS:
        # Outputs reach ±18, and the vectors are themselves float32: 2.6e-5 off a float64 pass.
        tolerance = 1e-5 * float(vectors[level].abs().max())
        torch.testing.assert_close(outputs[level], vectors[level], rtol=0, atol=tolerance)


def test_every_level_is_a_latent_of_the_input_size(small_model: LatentMappingModel) -> None:
    outputs = small_model(torch.randn(2, 4, 6, 10))
    assert set(outputs) == LEVELS
    assert {tuple(z.shape) for z in outputs.values()} == {(2, 4, 6, 10)}


def test_levels_are_joined_and_read_out_as_written(small_model: LatentMappingModel) -> None:
    m, z_image = small_model.double(), torch.randn(1, 4, 5, 6, dtype=torch.float64)

    def read_out(x: torch.Tensor, convds: nn.Sequential) -> torch.Tensor:
        x = F.silu(F.group_norm(x, 16, convds[0].weight, convds[0].bias, 1e-6))
        return F.conv2d(x, convds[2].weight, padding=1)

    x0 = F.conv2d(z_image, m.input_blocks.weight, m.input_blocks.bias, padding=1)
    x1 = m.conv1_0(x0)
    x2 = m.conv2_0(x1)
    x3 = m.conv3_0(x2)
    x3_1 = m.conv3_1(torch.hstack([x3, m.conv4_0(x3)]))
    x2_2 = m.conv2_2(torch.hstack([x2, x3_1]))
    x1_3 = m.conv1_3(torch.hstack([x1, x2_2]))
    x0_4 = m.conv0_4(torch.hstack([x0, x1_3]))
    outputs = m(z_image)
    torch.testing.assert_close(outputs["level3"], read_out(x3_1, m.convds3))
    torch.testing.assert_close(outputs["level2"], read_out(x2_2, m.convds2))
    torch.testing.assert_close(outputs["level1"], read_out(x1_3, m.convds1))
    torch.testing.assert_close(outputs["out"], read_out(x0_4, m.convds0))


def test_channels_last_changes_nothing(small_model: LatentMappingModel) -> None:
    z_image = torch.randn(2, 4, 6, 5)
    with torch.no_grad():
        expected = small_model(z_image)
        got = small_model.to(memory_format=torch.channels_last)(z_image)
    for level in LEVELS:
        torch.testing.assert_close(got[level], expected[level], rtol=1e-4, atol=1e-4)


def test_sixteen_latent_channels_in_sixteen_out() -> None:
    z_mask_hat = LatentMappingModel(latent_channels=16, width=16)(torch.randn(1, 16, 4, 4))
    assert z_mask_hat["out"].shape == (1, 16, 4, 4)


@torch.no_grad()
def test_attention_is_the_written_formula_position_by_position() -> None:
    torch.manual_seed(1)
    attention = Attention(16).double()
    x = torch.randn(1, 16, 2, 3, dtype=torch.float64)
    normed = F.group_norm(x, 16, attention.norm.weight, attention.norm.bias, 1e-6)[0].flatten(1)

    def project(conv: nn.Conv2d, columns: torch.Tensor) -> torch.Tensor:
        assert conv.bias is not None
        return conv.weight[:, :, 0, 0] @ columns + conv.bias[:, None]

    q, k, v = (project(conv, normed) for conv in (attention.q, attention.k, attention.v))
    mixed = torch.empty_like(v)
    for i in range(6):
        weights = [math.exp(float(q[:, i] @ k[:, j]) / 4) for j in range(6)]  # √16 = 4
        total = sum(weights)
        mixed[:, i] = sum((w / total * v[:, j] for j, w in enumerate(weights)), torch.zeros(()))
    expected = x + project(attention.proj_out, mixed).view(1, 16, 2, 3)
    torch.testing.assert_close(attention(x), expected)


def test_resblock_normalises_then_activates_then_convolves() -> None:
    torch.manual_seed(2)
    block = ResBlock(16, 32).double()
    with torch.no_grad():
        block.act1.weight.fill_(0.1)
        block.act2.weight.fill_(0.7)
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)

    def layer(h: torch.Tensor, slope: float, conv: nn.Conv2d) -> torch.Tensor:
        groups = h.unflatten(1, (16, -1)).flatten(2)
        variance, mean = torch.var_mean(groups, dim=2, keepdim=True, correction=0)
        h = ((groups - mean) / (variance + 1e-6).sqrt()).view(h.shape)
        return F.conv2d(torch.where(h > 0, h, slope * h), conv.weight, conv.bias, padding=1)

    h = layer(layer(x, 0.1, block.conv1[2]), 0.7, block.conv2[2])
    skip = F.conv2d(x, block.skip_connection.weight)
    torch.testing.assert_close(block(x), skip + h)


def test_resblock_of_equal_width_adds_its_input_unchanged() -> None:
    block = ResBlock(16, 16)
    nn.init.zeros_(block.conv2[2].weight)
    nn.init.zeros_(block.conv2[2].bias)
    x = torch.randn(1, 16, 3, 3)
    assert torch.equal(block(x), x)


def test_initial_weights_are_kaiming_normal_over_fan_out() -> None:
    torch.manual_seed(0)
    model = LatentMappingModel()
    conv = model.conv3_1.resblock.conv1[2]  # 256 → 128, 3×3: fan_out = 128·9
    assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.01)
    assert float(conv.weight.detach().mean()) == pytest.approx(0, abs=3e-4)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, nn.GroupNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_same_seed_draws_the_same_weights(small_model: LatentMappingModel) -> None:
    torch.manual_seed(0)
    again = LatentMappingModel(width=16).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in small_model.state_dict().items())


def test_gradients_reach_every_parameter_the_supervised_levels_use(
    small_model: LatentMappingModel,
) -> None:
    outputs = small_model(torch.randn(2, 4, 6, 6))
    sum(outputs[level].square().mean() for level in ("level2", "level1", "out")).backward()
    without = {name for name, p in small_model.named_parameters() if p.grad is None}
    assert without == {"convds3.0.weight", "convds3.0.bias", "convds3.2.weight"}
    # A bias of the keys moves a whole row of the softmax at once: its exact gradient is zero.
    still = {
        name
        for name, p in small_model.named_parameters()
        if p.grad is not None and not p.grad.any() and not name.endswith("k.bias")
    }
    assert still == set()


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (4, 28, 28)])
def test_input_that_is_no_latent_is_named_by_its_shape(
    small_model: LatentMappingModel, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=rf"shape \({shape[0]}, {shape[1]}, .*4 channels"):
        small_model(torch.zeros(shape))


@pytest.mark.parametrize(("width", "nearest"), [(24, 32), (40, 32), (8, 16), (0, 16), (-16, 16)])
def test_width_that_16_groups_do_not_divide_is_refused_with_one_that_they_do(
    width: int, nearest: int
) -> None:
    with pytest.raises(UsageError, match=f"width {width} ") as error:
        LatentMappingModel(width=width)
    assert f"--width {nearest}" in error.value.fix


def test_no_latent_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="latent channels must be at least 1, not 0"):
        LatentMappingModel(latent_channels=0)
