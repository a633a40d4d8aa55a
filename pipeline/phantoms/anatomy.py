"""Anatomy of a phantom: breast tissue, lesions and shadows as maps of echogenicity in dB.

Every function draws what it needs from the generator it is given, and nothing else decides.
Source of the lesion signs: Stavros et al. 1995, "Solid breast nodules", Radiology 196(1): benign
lesions are smooth, wider than tall, with a thin bright capsule; malignant ones are spiculated or
angular, tall, and cast shadows.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Rng = np.random.Generator

MARGIN_PX = 16  # of extra width at either side: the lateral filter wraps around outside the image


# ── tissue ───────────────────────────────────────────────────────────────────────────────────────


def draw_tissue(rng: Rng, shape: tuple[int, int]) -> Plane:
    """Echogenicity (H, W) in dB of skin, fat, gland, muscle and chest wall, bent as one body."""
    height, width = shape
    flat_db = draw_flat_layers(rng, shape)
    bend_px = smooth_noise(rng, shape, height / 2, width / 3) * rng.uniform(2, 9)
    bend_px += smooth_noise(rng, shape, height / 6, width / 9) * rng.uniform(1, 3.5)
    depth = np.arange(height, dtype=np.float32)[:, None]
    # The transducer presses the skin flat, so nothing bends at depth 0.
    bend_px *= np.minimum(depth / (0.25 * height), 1)
    columns = np.broadcast_to(np.arange(width, dtype=np.float32), shape)
    bent: Plane = map_coordinates(flat_db, [depth + bend_px, columns], order=1, mode="nearest")
    return bent


def draw_flat_layers(rng: Rng, shape: tuple[int, int]) -> Plane:
    """Echogenicity (H, W) in dB before bending: every boundary is still a depth."""
    height, _ = shape
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    skin = rng.uniform(0.025, 0.05)
    fat = skin + rng.uniform(0.08, 0.32)
    gland = fat + rng.uniform(0.22, 0.45)
    muscle = gland + rng.uniform(0.1, 0.3)

    ligaments = draw_ridges(rng, shape, cell_z_px=20, cell_x_px=110)
    lobules = smooth_noise(rng, shape, 18, 42)
    fat_db = rng.uniform(-8, -3) + 2 * lobules + 17 * ligaments
    ducts = np.maximum(smooth_noise(rng, shape, 7, 18) - 0.6, 0)
    mottle = smooth_noise(rng, shape, 4, 12)
    streaks = np.maximum(smooth_noise(rng, shape, 3, 34) - 0.6, 0)
    clumps = smooth_noise(rng, shape, 22, 60)
    gland_db = (
        2.5 * mottle + 2.5 * clumps - rng.uniform(2, 16) * ducts + rng.uniform(4, 11) * streaks
    )
    muscle_db = rng.uniform(-9, -2) + 13 * streaks + 2 * mottle
    wall_db = rng.uniform(-20, -6) + 3 * mottle + 6 * streaks

    flat_db = np.where(depth < fat, fat_db, gland_db)
    flat_db = np.where(depth > gland, muscle_db, flat_db)
    flat_db = np.where(depth > muscle, wall_db, flat_db)
    for line, gain_db in ((skin, 6), (fat, 6), (gland, 8), (muscle, rng.uniform(2, 14))):
        broken = 0.8 + 0.7 * smooth_noise(rng, (1, shape[1]), 1, 30)
        flat_db = flat_db + gain_db * broken * np.exp(-(((depth - line) * height / 1.5) ** 2))
    skin_db = np.where(depth < 0.35 * skin, 5, 0)
    layered: Plane = np.where(depth < skin, skin_db, flat_db).astype(np.float32)
    return layered


def draw_ridges(rng: Rng, shape: tuple[int, int], cell_z_px: float, cell_x_px: float) -> Plane:
    """Thin curved sheets around lobules (H, W), 0…1: Cooper's ligaments."""
    field = smooth_noise(rng, shape, cell_z_px, cell_x_px)
    slope_z, slope_x = np.gradient(field)
    distance_px = np.abs(field) / (np.hypot(slope_z, slope_x) + 0.02)
    strength = np.clip(0.7 + 0.6 * smooth_noise(rng, shape, 20, 40), 0, 1)
    ridges: Plane = strength * np.exp(-((distance_px / 1.2) ** 2))
    return ridges


# ── lesions ──────────────────────────────────────────────────────────────────────────────────────


def draw_lesion(
    rng: Rng, malignant: bool, tissue_db: Plane, shadow_db: Plane, place: int, of_places: int
) -> Mask:
    """Put a lesion into the tissue, and echo enhancement or shadow below it; returns its mask."""
    rim_px = draw_rim_distance(rng, malignant, tissue_db.shape, place, of_places)
    mask: Mask = rim_px < 0
    blur_px = rng.uniform(1, 3.5) if malignant else rng.uniform(0.4, 0.9)
    inside = gaussian_filter(mask.astype(np.float32), blur_px)
    cyst = not malignant and rng.random() < 0.3
    level_db = -34 if cyst else rng.uniform(-21, -14)
    content_db = level_db + (0 if cyst else 2.5) * smooth_noise(rng, mask.shape, 9, 14)
    # Tissue shows through a little: its own texture is damped, not replaced.
    tissue_db += inside * (content_db - 0.7 * tissue_db)
    if malignant:  # an echogenic halo: the tissue's reaction to it
        tissue_db += rng.uniform(1, 5) * np.exp(-(((rim_px - 4) / 4) ** 2))
    else:  # a thin capsule
        tissue_db += rng.uniform(2, 8) * np.exp(-(((rim_px - 1.5) / 1.3) ** 2))
    shadow_db += below(mask) * (rng.uniform(-15, -3) if malignant else rng.uniform(1, 8))
    return mask


def draw_rim_distance(
    rng: Rng, malignant: bool, shape: tuple[int, ...], place: int, of_places: int
) -> Plane:
    """About how far each pixel (H, W) lies outside a lesion's rim, in pixels; negative inside."""
    height, width = shape
    span = (width - 2 * MARGIN_PX) / of_places
    median = 0.17 if malignant else 0.105  # of the height: as wide as BUSI's lesions are
    radius_px = height * median * math.exp(rng.normal(0, 0.33)) / math.sqrt(of_places)
    radius_px = min(max(radius_px, 8), 0.3 * height)
    aspect = rng.uniform(0.85, 1.5) if malignant else rng.uniform(1.15, 2.1)
    radius_x, radius_z = radius_px * math.sqrt(aspect), radius_px / math.sqrt(aspect)
    reach = min(1.05 * radius_x, 0.48 * span)
    x = MARGIN_PX + place * span + rng.uniform(reach, span - reach)
    z = rng.uniform(0.08 * height + 1.1 * radius_z, 0.64 * height)

    rows = np.arange(height, dtype=np.float32)[:, None] - z
    columns = np.arange(width, dtype=np.float32)[None, :] - x
    tilt = rng.normal(0, 0.15)
    along = (columns * math.cos(tilt) + rows * math.sin(tilt)) / radius_x
    across = (rows * math.cos(tilt) - columns * math.sin(tilt)) / radius_z
    outline = draw_outline(rng, malignant)
    turn = np.mod(np.arctan2(across, along) / (2 * math.pi), 1) * len(outline)
    rim = np.interp(turn, np.arange(len(outline) + 1), np.append(outline, outline[0]))
    distance_px: Plane = ((np.hypot(along, across) - rim) * radius_px).astype(np.float32)
    return distance_px


def draw_outline(rng: Rng, malignant: bool) -> npt.NDArray[np.float64]:
    """Radius of a lesion's edge at 180 angles, around 1: lobulated if benign, spiculated if not."""
    angle = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    radius = np.ones_like(angle)
    roughness = 0.12 if malignant else 0.05
    for harmonic in range(2, 12 if malignant else 5):
        size = roughness * rng.normal() / (harmonic - 1) ** 0.8
        radius += size * np.cos(harmonic * angle + rng.uniform(0, 2 * math.pi))
    if malignant:
        for _ in range(rng.integers(2, 9)):  # spicules: narrow, pointed
            away = np.angle(np.exp(1j * (angle - rng.uniform(0, 2 * math.pi))))
            radius += rng.uniform(0.1, 0.35) * np.exp(-np.abs(away) / rng.uniform(0.1, 0.25))
    return np.maximum(radius, 0.4)


def below(mask: Mask) -> Plane:
    """How much of the beam at each pixel (H, W) went through the lesion above it, 0…1."""
    path = np.cumsum(mask, axis=0, dtype=np.float32)
    through = np.where(mask, 0, path / max(float(path[-1].max()), 1))
    blurred: Plane = gaussian_filter(through.astype(np.float32), (1.5, 4))
    return blurred


# ── losses on the way ────────────────────────────────────────────────────────────────────────────


def draw_shadows(rng: Rng, shape: tuple[int, int]) -> Plane:
    """What the beam lost on its way (H, W) in dB: attenuation, shadows, poor contact."""
    height, width = shape
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    column = np.arange(width, dtype=np.float32)[None, :]
    loss_db = -rng.uniform(4, 27) * depth ** rng.uniform(1, 2.5)
    loss_db = loss_db + rng.uniform(0.5, 3) * smooth_noise(rng, shape, height / 3, width / 2)
    for _ in range(rng.integers(0, 4)):
        centre = rng.uniform(0, width) + rng.normal(0, 12) * depth
        spread_px = rng.uniform(8, 34) * (0.8 + 0.5 * depth)
        onset = 1 / (1 + np.exp(-(depth - rng.uniform(0.05, 0.5)) / 0.03))
        loss_db -= rng.uniform(3, 14) * onset * np.exp(-(((column - centre) / spread_px) ** 2))
    contact = np.abs(column / width - 0.5) * 2
    shadows: Plane = (loss_db - rng.uniform(0, 10) * contact**4).astype(np.float32)
    return shadows


def smooth_noise(rng: Rng, shape: tuple[int, int], cell_z_px: float, cell_x_px: float) -> Plane:
    """Gaussian noise (H, W), about unit variance, with features of the given size in pixels."""
    height, width = shape
    coarse = rng.standard_normal(
        (max(2, round(height / cell_z_px)), max(2, round(width / cell_x_px))), dtype=np.float32
    )
    fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(fine, dtype=np.float32) * 1.3  # interpolation takes away part of the variance
