"""Pictures the tiny VAE learns from: ultrasound, phantoms, colour, masks of many shapes.

Every picture may be used for this by its licence; pipeline/assets/tiny-vae/README.md lists them.
A batch is a pure function of (seed, step), so training resumes exactly where it stopped.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter
from scipy.special import expit

from pipeline.archive.layouts import find_home, layout_named, scan_layout
from pipeline.archive.pairing import Entry
from pipeline.archive.split_files import normalise, read_split_file
from pipeline.images import read_image, read_union
from pipeline.phantoms import CLASS_SHARES, draw_phantom
from pipeline.pixels import to_pm1

# Files of the scikit-image wheel that their photographers gave to the public domain or CC0.
PHOTOS = {
    "astronaut.png": "public domain (NASA)",
    "hubble_deep_field.jpg": "public domain (NASA)",
    "rocket.jpg": "public domain (SpaceX)",
    "chelsea.png": "CC0 (Stefan van der Walt)",
    "coffee.png": "CC0 (Rachel Michetti)",
    "retina.jpg": "CC0 (Häggström 2014)",
    "camera.png": "CC0 (Lav Varshney)",
    "brick.png": "CC0 (CC0Textures)",
    "grass.png": "CC0 (Dayane Machado)",
    "gravel.png": "CC0 (CC0Textures)",
    "cell.png": "CC0 (scikit-image)",
}
SHARES = {"ultrasound": 0.43, "phantom": 0.07, "colour": 0.24, "mask": 0.22, "extreme": 0.04}
PHANTOM_COUNT = 300
FULL_PX = 224  # the size at which the project encodes: crops show this scale, more or less

ImageU8 = npt.NDArray[np.uint8]
Rng = np.random.Generator


def find_entries(layout_name: str, root: Path, split_file: Path | None, split: str) -> list[Entry]:
    """Samples of an archive: those that `split_file` puts in `split`, or all without such a file.

    raises     InputError when `root` is not laid out so, SplitError when the file cannot be read
    """
    layout = layout_named(layout_name)
    entries = scan_layout(find_home(root, layout), layout).entries
    if split_file is None:
        return list(entries)
    wanted = {normalise(name) for name, of in read_split_file(split_file).items() if of == split}
    return [entry for entry in entries if normalise(entry.sample_id) in wanted]


class Pictures:
    """All source pictures in memory, and crops drawn from them."""

    def __init__(self, busi: Path, split_file: Path, photos: Path, seed: int) -> None:
        entries = find_entries("busi", busi, split_file, "train")
        self.seed = seed
        self.ultrasound = [Image.fromarray(read_image(entry.image)) for entry in entries]
        self.masks = [Image.fromarray(read_union(e.masks)).convert("L") for e in entries]
        self.photos = [Image.fromarray(read_image(photos / name)) for name in PHOTOS]
        kinds = list(CLASS_SHARES)
        drawn = (draw_phantom(seed, kinds[i % 3], i + 1).image_u8 for i in range(PHANTOM_COUNT))
        self.phantoms = [Image.fromarray(grey).convert("RGB") for grey in drawn]

    def batch(self, step: int, count: int, size_px: int) -> torch.Tensor:
        """Batch of training step `step`: (count, 3, size_px, size_px) float32 in [-1, 1]."""
        rng = np.random.default_rng([self.seed, step])
        kinds = rng.choice(list(SHARES), size=count, p=list(SHARES.values()))
        crops = np.stack([self._draw(rng, kind, size_px) for kind in kinds])
        pixels_u8 = torch.from_numpy(crops).permute(0, 3, 1, 2)
        return to_pm1(pixels_u8).contiguous()

    def _draw(self, rng: Rng, kind: str, size_px: int) -> ImageU8:
        if kind == "mask":
            return self._draw_mask(rng, size_px)
        if kind == "extreme":
            return draw_extreme(rng, size_px)
        if kind == "colour":
            return self._draw_colour(rng, size_px)
        pool = self.ultrasound if kind == "ultrasound" else self.phantoms
        return crop(rng, pool[rng.integers(len(pool))], size_px, Image.Resampling.BILINEAR)

    def _draw_colour(self, rng: Rng, size_px: int) -> ImageU8:
        choice = rng.random()
        if choice < 0.25:
            return draw_cells(rng, size_px)
        if choice < 0.5:
            return draw_surface(rng, size_px)
        if choice < 0.75:
            photo = self.photos[rng.integers(len(self.photos))]
            return jitter_colour(rng, crop(rng, photo, size_px, Image.Resampling.BILINEAR))
        pool = self.ultrasound + self.photos
        grey = crop(rng, pool[rng.integers(len(pool))], size_px, Image.Resampling.BILINEAR)
        return paint(rng, grey[..., 1])

    def _draw_mask(self, rng: Rng, size_px: int) -> ImageU8:
        if rng.random() < 0.3:
            image = self.masks[rng.integers(len(self.masks))]
            mask = crop(rng, image, size_px, Image.Resampling.NEAREST) > 0
        else:
            mask = draw_shapes(rng, size_px)
        return np.repeat(mask[:, :, None].astype(np.uint8) * 255, 3, axis=2)


def crop(rng: Rng, image: Image.Image, size_px: int, resample: Image.Resampling) -> ImageU8:
    """A random window at about the scale of a 224 × 224 picture of the whole, perhaps mirrored."""
    share = size_px / FULL_PX * (rng.uniform(0.7, 1.3) if size_px < FULL_PX else 1)
    if size_px >= FULL_PX and rng.random() < 0.5:
        share = rng.uniform(0.6, 1)
    width, height = image.width * min(share, 1), image.height * min(share, 1)
    left = rng.uniform(0, image.width - width)
    top = rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    pixels = np.asarray(image.resize((size_px, size_px), resample, box=box))
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.25:
        pixels = pixels[::-1]
    return pixels


def smooth_noise(rng: Rng, size_px: int, cell_px: float) -> npt.NDArray[np.float32]:
    """Gaussian noise (size_px, size_px) with features of about cell_px."""
    cells = max(2, round(size_px / cell_px))
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC))


def draw_shapes(rng: Rng, size_px: int) -> npt.NDArray[np.bool_]:
    """A binary mask: blobs, gland-like rings, ellipses, polygons or lines, perhaps inverted."""
    kind = int(rng.integers(5))
    if kind == 0:
        mask = smooth_noise(rng, size_px, rng.uniform(6, 70)) > rng.uniform(-0.6, 1.2)
    elif kind == 1:
        mask = np.abs(smooth_noise(rng, size_px, rng.uniform(12, 50))) < rng.uniform(0.1, 0.5)
    else:
        canvas = Image.new("1", (size_px, size_px))
        pen = ImageDraw.Draw(canvas)
        for _ in range(rng.integers(1, 9)):
            draw_shape(rng, pen, kind, size_px)
        mask = np.array(canvas)
    return ~mask if rng.random() < 0.15 else mask


def draw_shape(rng: Rng, pen: ImageDraw.ImageDraw, kind: int, size_px: int) -> None:
    """One ellipse, polygon or polyline of random place and size."""
    centre = rng.uniform(0, size_px, 2)
    radii = np.exp(rng.uniform(np.log(3), np.log(size_px / 3), 2))
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
    reach = radii * rng.uniform(0.5, 1, (len(angles), 1))
    corners = centre + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
    points = [(float(x), float(y)) for x, y in corners]
    if kind == 2:
        pen.ellipse((*(centre - radii), *(centre + radii)), fill=1)
    elif kind == 3:
        pen.polygon(points, fill=1)
    else:
        pen.line(points, fill=1, width=int(rng.integers(1, 7)))


def draw_cells(rng: Rng, size_px: int) -> ImageU8:
    """Coloured discs of a few colours on a mottled ground, as in a stained section of tissue."""
    ground = 127 + 50 * smooth_noise(rng, size_px, rng.uniform(4, 60))
    ground += rng.uniform(0, 10) * smooth_noise(rng, size_px, 1)
    canvas = Image.fromarray(paint(rng, np.clip(ground, 0, 255).astype(np.uint8)))
    pen = ImageDraw.Draw(canvas)
    palette = rng.integers(0, 256, (4, 3))
    for _ in range(rng.integers(0, 90)):
        x, y = rng.uniform(0, size_px, 2)
        radius_x, radius_y = np.exp(rng.uniform(0.5, 2.5, 2))
        shade = palette[rng.integers(4)] + rng.integers(-20, 21, 3)
        box = (x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        pen.ellipse(box, fill=tuple(int(c) for c in np.clip(shade, 0, 255)))
    blurred = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    return np.asarray(blurred)


def draw_surface(rng: Rng, size_px: int) -> ImageU8:
    """An evenly coloured, softly lit, slightly rough surface with one or no patch: skin, cloth."""
    colour = rng.uniform(40, 235) + rng.normal(0, 30, 3)
    light = smooth_noise(rng, size_px, rng.uniform(60, 220))[:, :, None]
    rough = smooth_noise(rng, size_px, rng.uniform(1, 6))[:, :, None]
    pixels = colour + light * rng.normal(0, 15, 3)
    if rng.random() < 0.6:
        height = smooth_noise(rng, size_px, rng.uniform(30, 110)) - rng.uniform(0.3, 1.3)
        patch = expit(height * rng.uniform(3, 30))
        pixels = pixels + patch[:, :, None] * rng.normal(-25, 35, 3)
    pixels = pixels + rough * (rng.uniform(0, 12) + rng.normal(0, 3, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def paint(rng: Rng, grey: ImageU8) -> ImageU8:
    """Colour a grey picture (H, W) by a random map through three to five colours."""
    stops = np.linspace(0, 255, rng.integers(3, 6))
    colours = rng.uniform(0, 255, (len(stops), 3))
    if rng.random() < 0.5:  # one hue family, as stains and skin have
        colours = 0.3 * colours + 0.7 * np.linspace(colours[0], colours[-1], len(stops))
    table = np.stack([np.interp(np.arange(256), stops, channel) for channel in colours.T], 1)
    return table.astype(np.uint8)[grey]


def jitter_colour(rng: Rng, rgb: ImageU8) -> ImageU8:
    """Shuffle the channels of half the photographs, and change gain and offset of each channel."""
    order = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
    gain, offset = rng.uniform(0.7, 1.2, 3), rng.uniform(-30, 30, 3)
    return np.clip(rgb[..., order] * gain + offset, 0, 255).astype(np.uint8)


def draw_extreme(rng: Rng, size_px: int) -> ImageU8:
    """One colour everywhere (often black or white), or uniform noise."""
    if rng.random() < 0.15:
        return rng.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
    shade = rng.integers(0, 256, 3) if rng.random() < 0.4 else np.full(3, rng.integers(2) * 255)
    return np.broadcast_to(shade.astype(np.uint8), (size_px, size_px, 3))
