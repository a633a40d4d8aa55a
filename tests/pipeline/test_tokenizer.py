"""One interface over three kinds of autoencoder, each held against diffusers called directly."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from safetensors.torch import load_file, save_file

from pipeline.errors import ArtefactError, InputError, UsageError
from pipeline.tokenizer import (
    Tokenizer,
    load_tokenizer,
    load_tokenizer_of,
    require_multiple,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
KINDS = {"kl": small.small_kl, "tiny": small.small_tiny, "vq": small.small_vq}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of each kind, as diffusers saves it."""
    home = tmp_path_factory.mktemp("tokenizers")
    for name, make in KINDS.items():
        make().save_pretrained(home / name)
    return {name: home / name for name in KINDS}


@pytest.fixture
def kl(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the KL model to damage."""
    return Path(shutil.copytree(folders["kl"], tmp_path / "kl"))


def pixels(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, small.SIZE_PX, small.SIZE_PX, generator=generator) * 2 - 1


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


# --- against diffusers


def test_kl_encodes_to_the_posteriors_mean_and_std(folders: dict[str, Path]) -> None:
    mean, std = load_tokenizer(str(folders["kl"])).encode(pixels())
    with torch.no_grad():
        posterior = AutoencoderKL.from_pretrained(folders["kl"]).encode(pixels()).latent_dist
    torch.testing.assert_close(mean, posterior.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, posterior.std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("tiny", AutoencoderTiny), ("vq", VQModel)])
def test_deterministic_kinds_encode_to_latents_without_std(
    folders: dict[str, Path], name: str, kind: Any
) -> None:
    tokenizer = load_tokenizer(str(folders[name]))
    latent, std = tokenizer.encode(pixels())
    with torch.no_grad():
        expected = kind.from_pretrained(folders[name]).encode(pixels()).latents
    torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-5)
    assert std is None
    assert tokenizer.deterministic


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_latent_lies_in_memory_as_one_that_is_read_from_a_store(
    folders: dict[str, Path], kind: str, precision: str
) -> None:
    for latent in load_tokenizer(str(folders[kind])).encode(pixels(), precision):
        assert latent is None or latent.is_contiguous()


@pytest.mark.parametrize(
    ("name", "kind"), [("kl", AutoencoderKL), ("tiny", AutoencoderTiny), ("vq", VQModel)]
)
def test_decode_is_diffusers_decode(folders: dict[str, Path], name: str, kind: Any) -> None:
    tokenizer = load_tokenizer(str(folders[name]))
    latent = tokenizer.encode(pixels())[0].clone()
    with torch.no_grad():
        expected = kind.from_pretrained(folders[name]).decode(latent).sample
    decoded = tokenizer.decode(latent)
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-4)
    assert decoded.shape == pixels().shape


def test_geometry_and_scale_are_those_of_the_model(folders: dict[str, Path]) -> None:
    facts = {
        name: (t.latent_channels, t.downsampling, t.scaling_factor, t.shift_factor, t.kind)
        for name, t in ((name, load_tokenizer(str(path))) for name, path in folders.items())
    }
    assert facts == {
        "kl": (4, 8, 0.18215, 0.0, "AutoencoderKL"),
        "tiny": (4, 8, 1.0, 0.0, "AutoencoderTiny"),
        "vq": (3, 2, 0.18215, 0.0, "VQModel"),
    }


def test_scaling_factor_is_not_applied(kl: Path) -> None:
    before = load_tokenizer(str(kl))
    config = json.loads((kl / "config.json").read_text())
    (kl / "config.json").write_text(json.dumps({**config, "scaling_factor": 7.0}))
    after = load_tokenizer(str(kl))
    assert after.scaling_factor == 7.0
    assert torch.equal(before.encode(pixels())[0], after.encode(pixels())[0])
    latent = torch.ones(1, 4, 8, 8)
    assert torch.equal(before.decode(latent), after.decode(latent))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_and_comes_back_as_float32(
    folders: dict[str, Path], precision: str
) -> None:
    tokenizer = load_tokenizer(str(folders["kl"]))
    full_mean, full_std = tokenizer.encode(pixels(1))
    mean, std = tokenizer.encode(pixels(1), precision)
    assert mean.dtype == std.dtype == tokenizer.decode(mean, precision).dtype == torch.float32
    assert not torch.equal(mean, full_mean)
    torch.testing.assert_close(mean, full_mean, rtol=0.1, atol=0.05)
    torch.testing.assert_close(std, full_std, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", KINDS)
def test_gradient_flows_through_decode_to_latents_and_not_to_weights(
    folders: dict[str, Path], name: str
) -> None:
    tokenizer = load_tokenizer(str(folders[name]))
    latent = torch.randn(1, tokenizer.latent_channels, 8, 8, requires_grad=True)
    tokenizer.decode(latent).square().mean().backward()
    assert latent.grad is not None
    assert latent.grad.abs().max() > 0
    weights = list(tokenizer.autoencoder.parameters())
    assert not any(weight.requires_grad or weight.grad is not None for weight in weights)
    assert not tokenizer.autoencoder.training


# --- the digest


def test_digest_is_of_the_model_and_not_of_its_place_or_format(
    folders: dict[str, Path], kl: Path, tmp_path: Path
) -> None:
    digest = load_tokenizer(str(folders["kl"])).digest
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert load_tokenizer(str(kl)).digest == digest
    file = write_ldm(kl, tmp_path / "ldm.safetensors")
    assert load_tokenizer(str(file)).digest == digest


def test_digest_knows_every_weight_and_setting(kl: Path) -> None:
    digests = {load_tokenizer(str(kl)).digest}
    change_weights(kl, lambda weights: weights["decoder.conv_out.bias"][2].add_(1e-6))
    digests.add(load_tokenizer(str(kl)).digest)
    config = json.loads((kl / "config.json").read_text())
    (kl / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.2}))
    digests.add(load_tokenizer(str(kl)).digest)
    assert len(digests) == 3


def test_tokenizer_of_a_store_is_refused_when_its_weights_have_changed(kl: Path) -> None:
    description = load_tokenizer(str(kl)).describe()
    assert load_tokenizer_of(description, "cpu").digest == description["digest"]
    change_weights(kl, lambda weights: weights["encoder.conv_in.bias"].add_(1))
    with pytest.raises(ArtefactError, match=description["digest"][:12]):
        load_tokenizer_of(description, "cpu")


def test_description_is_json(folders: dict[str, Path]) -> None:
    description = load_tokenizer(str(folders["kl"])).describe()
    assert json.loads(json.dumps(description)) == description


# --- single files, as the original latent diffusion code names its weights

LDM_NAMES = [
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]


def ldm_weights(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """A KL model's weights under the names of CompVis/latent-diffusion, attention as 1×1 convs."""
    renamed = {}
    for name, weight in load_file(folder / WEIGHTS).items():
        for pattern, replacement in LDM_NAMES:
            name = re.sub(pattern, replacement, name)
        is_linear = "attn_1" in name and weight.ndim == 2
        renamed[prefix + name] = (weight[:, :, None, None] if is_linear else weight).contiguous()
    return renamed


def write_ldm(folder: Path, file: Path, prefix: str = "", config: bool = True) -> Path:
    weights = ldm_weights(folder, prefix)
    if file.suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save({"state_dict": weights, "global_step": 1}, file)
    if config:
        shutil.copy(folder / "config.json", file.with_suffix(".json"))
    return file


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_single_file_encodes_as_the_directory_does(
    folders: dict[str, Path], tmp_path: Path, prefix: str, suffix: str
) -> None:
    file = write_ldm(folders["kl"], tmp_path / f"vae{suffix}", prefix)
    one, other = load_tokenizer(str(file)), load_tokenizer(str(folders["kl"]))
    for a, b in zip(one.encode(pixels()), other.encode(pixels()), strict=True):
        assert torch.equal(a, b)
    latent = torch.ones(1, 4, 8, 8)
    assert torch.equal(one.decode(latent), other.decode(latent))


def test_single_file_without_config_is_taken_for_an_sd_vae(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    file = write_ldm(folders["kl"], tmp_path / "vae.safetensors", config=False)
    # 128 channels wide: this small one does not fit, and is not quietly made to.
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(str(file))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth"])
def test_checkpoint_that_brings_code_is_refused_and_not_executed(
    folders: dict[str, Path], tmp_path: Path, suffix: str
) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch '{marker}'",)

    file = tmp_path / f"vae{suffix}"
    torch.save({"state_dict": ldm_weights(folders["kl"]), "extra": Evil()}, file)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(str(file))
    assert not marker.exists()


# --- what is not quietly accepted


def test_missing_weight_is_named(kl: Path, tmp_path: Path) -> None:
    change_weights(kl, lambda weights: weights.pop("decoder.conv_in.bias"))
    with pytest.raises(InputError, match=r"1 weights are missing, first decoder\.conv_in\.bias"):
        load_tokenizer(str(kl))
    file = write_ldm(kl, tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match=r"first decoder\.conv_in\.bias"):
        load_tokenizer(str(file))


def test_weight_of_another_shape_is_refused(kl: Path) -> None:
    change_weights(kl, lambda weights: weights.update({"encoder.conv_in.bias": torch.zeros(5)}))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(str(kl))


@pytest.mark.parametrize(
    ("name", "content"),
    [(WEIGHTS, b"no tensors"), ("config.json", b"{"), ("config.json", b"{}")],
    ids=["weights", "config", "no class"],
)
def test_damaged_file_is_bad_input(kl: Path, name: str, content: bytes) -> None:
    (kl / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(kl))) as caught:
        load_tokenizer(str(kl))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"state_dict": {}}])
def test_checkpoint_without_weights_is_bad_input(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "vae.pt")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path / "vae.pt"))


def test_model_of_another_class_is_named(kl: Path) -> None:
    config = json.loads((kl / "config.json").read_text())
    config["_class_name"] = "AutoencoderKLWan"
    (kl / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"AutoencoderKLWan.*AutoencoderKL, AutoencoderTiny"):
        load_tokenizer(str(kl))


def test_model_for_other_than_rgb_images_is_refused(tmp_path: Path) -> None:
    grey = AutoencoderKL(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4)
    grey.save_pretrained(tmp_path / "grey")
    with pytest.raises(InputError, match="1 channels in and 1 out, images have 3"):
        load_tokenizer(str(tmp_path / "grey"))


def test_size_must_divide_into_latent_cells() -> None:
    tokenizer = Tokenizer("small", small.small_kl(), torch.device("cpu"))
    require_multiple(224, tokenizer)
    with pytest.raises(UsageError, match="230 is not a multiple of 8") as caught:
        require_multiple(230, tokenizer)
    assert caught.value.fix == "--size 232"


# --- published weights


@pytest.mark.parametrize(("name", "channels"), [("taesd", 4), ("taesd3", 16)])
def test_published_tokenizers_have_their_published_geometry(
    assets: Path, name: str, channels: int
) -> None:
    tokenizer = load_tokenizer(str(assets / "weights" / name))
    assert (tokenizer.latent_channels, tokenizer.downsampling) == (channels, 8)
    assert tokenizer.deterministic
    # 2.4 million parameters
    assert sum(p.numel() for p in tokenizer.autoencoder.parameters()) == pytest.approx(
        2.4e6, rel=0.05
    )
