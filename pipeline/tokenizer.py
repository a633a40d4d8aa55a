"""The frozen image autoencoder: pixels to raw latents and back, one interface for every kind."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from pipeline.device import autocast
from pipeline.errors import ArtefactError, InputError, UsageError
from pipeline.weights import locate

# What a single-file Stable Diffusion checkpoint does not say about itself.
_SD_VAE_CONFIG = Path(__file__).parent / "assets" / "sd-vae"
_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
# Larger than any first convolution needs, small enough to cost milliseconds.
_PROBE_PX = 64


class Tokenizer:
    """A frozen tokenizer E, D with what a store must know of it.

    name              as it was asked for: a known name, a path or a hub id
    digest            sha256 over class, configuration and every weight; independent of file format
    scaling_factor    s of the tokenizer's configuration; applied at read time, never here
    shift_factor      m of the tokenizer's configuration, 0 for most; z = s · (latent − m)
    latent_channels   C of a latent (C, h, w)
    downsampling      H / h
    deterministic     whether E has no posterior (no standard deviation)
    """

    def __init__(self, name: str, autoencoder: nn.Module, device: torch.device) -> None:
        self.name = name
        self.device = device
        # Channels last is what the convolution kernels of CPUs and tensor cores want: measured
        # 1.3–1.5× on TAESD's encoder on a CPU.
        frozen = autoencoder.to(device, torch.float32).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.autoencoder: Any = frozen.eval().requires_grad_(False)
        config = dict(self.autoencoder.config)
        self.kind = type(autoencoder).__name__
        self.digest = _digest(self.kind, config, autoencoder)
        self.scaling_factor = float(config.get("scaling_factor") or 1.0)
        self.shift_factor = float(config.get("shift_factor") or 0.0)
        self.deterministic = self.kind != "AutoencoderKL"
        mean, _ = self.encode(torch.zeros(1, 3, _PROBE_PX, _PROBE_PX, device=device))
        self.latent_channels = mean.shape[1]
        self.downsampling = _PROBE_PX // mean.shape[2]

    def describe(self) -> dict[str, Any]:
        """What is written into a store about its tokenizer; JSON types only."""
        return {
            "name": self.name,
            "kind": self.kind,
            "digest": self.digest,
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor,
            "latent_channels": self.latent_channels,
            "downsampling": self.downsampling,
            "deterministic": self.deterministic,
        }

    @torch.inference_mode()
    def encode(
        self, pixels_pm1: torch.Tensor, precision: str = "fp32"
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """E: the posterior's mean and standard deviation, in raw units (no scaling factor).

        pixels_pm1  (B, 3, H, W) float32 in [-1, 1], H and W multiples of `downsampling`
        returns     mean (B, C, h, w) float32, contiguous; std likewise, > 0, or None when
                    deterministic
        """
        pixels_pm1 = pixels_pm1.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, precision):
            encoded = self.autoencoder.encode(pixels_pm1)
        # contiguous(): what reads a latent sums in another order when its channels lie last, and
        # from a store they do not.
        if self.deterministic:
            return encoded.latents.float().contiguous(), None
        posterior = encoded.latent_dist
        # The posterior's parameters may be half precision; its exponential is taken in full.
        std = (0.5 * posterior.logvar.float()).exp()
        return posterior.mean.float().contiguous(), std.contiguous()

    def decode(self, latent: torch.Tensor, precision: str = "fp32") -> torch.Tensor:
        """D: pixels from raw latents; differentiable with respect to the latents.

        latent   (B, C, h, w), raw tokenizer units
        returns  (B, 3, H, W) float32, nominally in [-1, 1], not clamped
        """
        latent = latent.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, precision):
            pixels: torch.Tensor = self.autoencoder.decode(latent).sample
        return pixels.float()


def load_tokenizer(name: str, device: str | torch.device = "cpu") -> Tokenizer:
    """The tokenizer of that name, path or hub id; see `pipeline.weights.locate`.

    raises  ArtefactError when it cannot be had, InputError when its files are damaged or of a
            class that is no two-dimensional image autoencoder
    """
    source = locate(name)
    # diffusers advises on packages that would speed up loading; nobody asked.
    diffusers.utils.logging.set_verbosity_error()
    try:
        autoencoder = _from_directory(source) if source.is_dir() else _from_single_file(source)
        _require_rgb(autoencoder)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"tokenizer {name!r} at {source} cannot be loaded: {first_line}",
            "download it again, or check that it is a diffusers autoencoder in safetensors format",
        ) from error
    return Tokenizer(name, autoencoder, torch.device(device))


def _from_directory(folder: Path) -> nn.Module:
    kind = json.loads((folder / "config.json").read_text()).get("_class_name")
    if kind not in _CLASSES:
        raise ValueError(f"its config.json says {kind!r}, known are {', '.join(_CLASSES)}")
    autoencoder, loading = getattr(diffusers, kind).from_pretrained(
        folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
    )
    _require_every_weight(loading["missing_keys"])
    return autoencoder  # type: ignore[no-any-return]


def _from_single_file(path: Path) -> nn.Module:
    """A checkpoint in latent-diffusion format; a `.json` beside it may say its configuration."""
    sibling = path.with_suffix(".json")
    config = json.loads(
        (sibling if sibling.exists() else _SD_VAE_CONFIG / "config.json").read_text()
    )
    checkpoint = diffusers.loaders.single_file_utils.load_single_file_checkpoint(str(path))
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"it holds a {type(checkpoint).__name__} and no named weights")
    weights = diffusers.loaders.single_file_utils.convert_ldm_vae_checkpoint(checkpoint, config)
    autoencoder = diffusers.AutoencoderKL.from_config(config)
    _require_every_weight(autoencoder.state_dict().keys() - weights.keys())
    autoencoder.load_state_dict(weights, strict=False)
    return autoencoder  # type: ignore[no-any-return]


def _require_rgb(autoencoder: Any) -> None:
    channels = (autoencoder.config.in_channels, autoencoder.config.out_channels)
    if channels != (3, 3):
        raise ValueError(f"it has {channels[0]} channels in and {channels[1]} out, images have 3")


def _require_every_weight(missing: Any) -> None:
    # A tokenizer with weights left at random encodes without complaint.
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, first {sorted(missing)[0]}")


def _digest(kind: str, config: dict[str, Any], autoencoder: nn.Module) -> str:
    # Keys with an underscore hold the writer's version and path, not the tokenizer.
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True, default=str).encode())
    for name, weight in sorted(autoencoder.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        # contiguous(): the digest must not depend on the memory format of the moment.
        array = weight.detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(array.data)
    return digest.hexdigest()


def require_multiple(size: int, tokenizer: Tokenizer) -> None:
    """Raise UsageError unless images of that side (px) divide into whole latent cells."""
    if size % tokenizer.downsampling:
        raise UsageError(
            f"--size {size} is not a multiple of {tokenizer.downsampling}, "
            f"the down-sampling of tokenizer {tokenizer.name!r}",
            f"--size {max(1, round(size / tokenizer.downsampling)) * tokenizer.downsampling}",
        )


def load_tokenizer_of(description: dict[str, Any], device: str | torch.device) -> Tokenizer:
    """The very tokenizer a store or run was made with, checked by digest.

    raises  ArtefactError when the weights found under its name have another digest
    """
    tokenizer = load_tokenizer(description["name"], device)
    if tokenizer.digest != description["digest"]:
        raise ArtefactError(
            f"tokenizer {description['name']!r} has digest {tokenizer.digest[:12]}, "
            f"the store was encoded with {description['digest'][:12]}",
            "restore the weights the store was encoded with, or encode a new store",
        )
    return tokenizer
