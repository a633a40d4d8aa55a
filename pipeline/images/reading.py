"""One image or mask file, decoded and resized: every published format in, one pixel format out."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Never

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from pipeline.errors import InputError, UsageError
from pipeline.images.inside_out import ENCLOSED, is_inside_out
from pipeline.places import read
from pipeline.telling import some_of

ImageU8 = npt.NDArray[np.uint8]
Deep = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]
Window = tuple[int, int]  # of 16-bit values, what becomes 0 and what becomes 255

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# What Pillow's decoders raise on damaged bytes.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
VALUES_SHOWN = 8
FULL: Window = (0, 65535)
BITS = (8, 10, 12, 14, 16)  # that files of 16 bits are known to hold

# Pillow only warns between one and two times its pixel limit. A filter set once at import is
# thread-safe, which catch_warnings around each decode is not.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Pillow loads its rarer formats on first need, and threads that race there miss some.
Image.init()


class ImageError(InputError):
    """One file that cannot serve as an image or mask; `kind` is the fault, `detail` its words."""

    def __init__(self, path: Path, kind: str, detail: str, fix: str) -> None:
        super().__init__(f"{path}: {detail}", fix)
        self.path = path
        self.kind = kind
        self.detail = detail


def read_image(path: Path, window: Window | None = None) -> ImageU8:
    """An image file as 8-bit RGB, upright.

    EXIF orientation is applied; grey is repeated over three channels; an alpha channel is dropped,
    not composited; 16-bit grey is mapped as `stretch` does.

    window     of 16-bit values; None for their full range
    returns    (H, W, 3) uint8, 0…255
    raises     ImageError when the file is missing, damaged, not an image, multi-frame, too large,
               or has pixels of more than 16 bits
    """
    return stretch(read_pixels(path), window)


def read_pixels(path: Path) -> ImageU8 | Deep:
    """An image file upright and at its own depth: what `read_image` makes its 8-bit RGB of.

    returns    (H, W, 3) uint8, or (H, W) uint16 for grey of 16 bits
    raises     ImageError as read_image does
    """
    return _pixels(_load(path), path)


def read_pillow(image: Image.Image, window: Window | None = None) -> ImageU8:
    """An image that Pillow has opened or made, as 8-bit RGB, upright: as read_image does.

    returns    (H, W, 3) uint8, 0…255
    raises     ImageError as read_image does
    """
    path = Path(getattr(image, "filename", "") or "image")
    with _named_faults(path):
        upright = _upright(image, path)
    return stretch(_pixels(upright, path), window)


def stretch(pixels: ImageU8 | Deep, window: Window | None = None) -> ImageU8:
    """Pixels of either depth as 8-bit RGB: (value − low) / (high − low) · 255, clipped and rounded.

    pixels     (H, W) uint16, or (H, W, 3) uint8, which is returned as it is
    window     low and high, low < high; None for 0 and 65535
    """
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    low, high = window or FULL
    above = pixels.clip(low, high).astype(np.uint32) - low
    grey = (above * 255 + (high - low) // 2) // (high - low)
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def window_of(highest: int) -> Window:
    """The window of data whose highest 16-bit value this is: 0 and 2^bits − 1 of fewest BITS."""
    return next((0, 2**bits - 1) for bits in BITS if highest < 2**bits)


def parse_foreground(words: str) -> str:
    """A colour as '#rrggbb', of a name or notation that Pillow knows: red, #f00, rgb(255, 0, 0).

    returns    that, or ENCLOSED as it is
    raises     UsageError for any other word
    """
    if words == ENCLOSED:
        return words
    try:
        return _hex(ImageColor.getrgb(words)[:3])
    except ValueError:
        fix = "give it as '#ff0000', or by a name such as red"
        raise UsageError(f"{words!r} is not a colour", fix) from None


def read_mask(path: Path, *, labels: bool = False, foreground: str | None = None) -> Mask:
    """A mask file as foreground (True) and background (False), upright.

    A grey mask is read by its values, an RGB or RGBA mask by its luminance with alpha ignored.
    These must be 0, one other value, or both. A palette mask is read by its colours: black, one
    other, or both. With `labels`, values and palette indices are object labels, of any number,
    and foreground is label > 0. With `foreground`, it is the pixels of that colour; ENCLOSED turns
    masks that are drawn inside out, and no others.

    foreground '#rrggbb', or ENCLOSED, as `parse_foreground` gives it
    returns    (H, W) bool
    raises     ImageError as read_image does, and when the mask is not two-valued with background 0
    """
    image = _load(path)
    if foreground and foreground != ENCLOSED:
        mask: Mask = (np.array(_rgb(image, path)) == ImageColor.getrgb(foreground)).all(axis=2)
        return mask
    values = _mask_values(image, path)
    if labels:
        return values > 0
    if image.mode in ("P", "PA"):
        values = _values_by_colour(values, image)
    _check_two_valued(values, image, path)
    drawn: Mask = values > 0
    return ~drawn if foreground == ENCLOSED and is_inside_out(drawn) else drawn


def read_union(
    paths: Sequence[Path], *, labels: bool = False, foreground: str | None = None
) -> Mask:
    """The union of one sample's masks, each read as read_mask does.

    returns    (H, W) bool
    raises     ImageError as read_mask does, and when the masks differ in size
    """
    assert paths, "a sample has at least one mask"
    union = read_mask(paths[0], labels=labels, foreground=foreground)
    for path in paths[1:]:
        mask = read_mask(path, labels=labels, foreground=foreground)
        if mask.shape != union.shape:
            detail = f"is {_size(mask)} but {paths[0].name} is {_size(union)} (width × height)"
            raise ImageError(path, "size", detail, "export all masks of an image at its size")
        union |= mask
    return union


def resize_image(image_u8: ImageU8, size: int) -> ImageU8:
    """An image at size × size pixels, bilinear and antialiased when it shrinks (Pillow's filter).

    image_u8   (H, W, 3) uint8, 0…255
    returns    (size, size, 3) uint8, 0…255; the aspect ratio is not kept, as in GMS
    """
    resized = Image.fromarray(image_u8).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(resized)


def resize_mask(mask: Mask, size: int) -> Mask:
    """A mask at size × size pixels by nearest neighbour, so that it stays two-valued.

    mask       (H, W) bool
    returns    (size, size) bool
    """
    resized = Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.array(resized) > 0


def _load(path: Path) -> Image.Image:
    """The file's one frame, decoded in full and turned upright."""
    with _named_faults(path), Image.open(io.BytesIO(read(path))) as image:
        return _upright(image, path)


def _upright(image: Image.Image, path: Path) -> Image.Image:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        detail = f"holds {frames} frames; a sample is one image"
        raise ImageError(path, "multi-frame", detail, "save the frame that is meant alone")
    image.load()
    if image.mode == "F":
        _refuse_depth(image, path)
    return ImageOps.exif_transpose(image)


@contextmanager
def _named_faults(path: Path) -> Iterator[None]:
    """Whatever Pillow raises on opening and decoding a file, as an ImageError that names it."""
    try:
        yield
    except FileNotFoundError:
        detail = "no such file"
        raise ImageError(path, "missing", detail, "restore the file from its archive") from None
    except BOMBS:
        detail = f"has more pixels than the limit of {Image.MAX_IMAGE_PIXELS}"
        raise ImageError(path, "too-large", detail, "tile the image or scale it down") from None
    except UnidentifiedImageError:
        detail = "is not an image in any format known here"
        raise ImageError(path, "unreadable", detail, "replace it by the image itself") from None
    except DAMAGE as error:
        detail = f"cannot be decoded: {error}"
        raise ImageError(path, "unreadable", detail, "fetch the file again") from error


def _pixels(image: Image.Image, path: Path) -> ImageU8 | Deep:
    if image.mode in SIXTEEN_BIT_MODES:
        return _sixteen_bit(image, path)
    return np.array(_rgb(image, path))


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    # By way of RGBA: a palette with transparency would otherwise be warned about.
    through = image.convert("RGBA") if image.mode in ("P", "PA") else image
    try:
        return through.convert("RGB")
    except ValueError as error:
        detail = f"has colour mode {image.mode}, which has no way to RGB"
        raise ImageError(path, "unreadable", detail, "save it as 8-bit RGB or grey") from error


def _sixteen_bit(image: Image.Image, path: Path) -> Deep:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        _refuse_depth(image, path)
    return values.astype(np.uint16)


def _refuse_depth(image: Image.Image, path: Path) -> Never:
    detail = f"has pixels of mode {image.mode} beyond 16 bits, whose range is unknown"
    raise ImageError(path, "unreadable", detail, "save it with 8 or 16 bits a channel")


def _mask_values(image: Image.Image, path: Path) -> Deep:
    """Index of a palette mask, value of a grey one, luminance of a coloured one."""
    if image.mode in SIXTEEN_BIT_MODES:
        return _sixteen_bit(image, path)
    if image.mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("LA", "PA"):
        return np.asarray(image.getchannel(0)).astype(np.uint16)
    return np.asarray(_rgb(image, path).convert("L")).astype(np.uint16)


def _values_by_colour(indices: Deep, image: Image.Image) -> Deep:
    """0 where a palette mask is black, a value of its own for each index that is not."""
    used = np.flatnonzero(np.bincount(indices.ravel()))
    palette = np.zeros((used.max() + 1, 3), np.uint8)  # one that is too short goes on in black
    entries = np.array((image.getpalette("RGB") or [])[: 3 * len(palette)]).reshape(-1, 3)
    palette[: len(entries)] = entries
    if len(np.unique(palette[used], axis=0)) < len(used):
        return indices  # a palette that does not tell them apart was not meant to be looked at
    black = np.flatnonzero(~palette.any(axis=1))
    return np.where(np.isin(indices, black), 0, indices + 1).astype(np.uint16)


def _check_two_valued(values: Deep, image: Image.Image, path: Path) -> None:
    found = np.flatnonzero(np.bincount(values.ravel())).tolist()
    if len(found) == 1 or (len(found) == 2 and found[0] == 0):
        return
    fix = "threshold the mask and save it as PNG (JPEG blurs a mask)"
    if len(found) <= VALUES_SHOWN:
        fix += ", or name the foreground, as in --foreground '#ff0000'"
    if image.mode in ("1", "L", "LA", *SIXTEEN_BIT_MODES):
        what, words = "values", [str(value) for value in found]
        wanted = "background 0 and one foreground value"
    else:
        what, words = "colours", _colours(np.array(_rgb(image, path)))
        wanted = "a black background and one other colour"
    detail = f"has the {what} {some_of(words, VALUES_SHOWN)}; a mask has {wanted}"
    raise ImageError(path, "mask-values", detail, fix)


def _colours(rgb_u8: ImageU8) -> list[str]:
    """The colours with their pixel counts, the most frequent first."""
    colours, counts = np.unique(rgb_u8.reshape(-1, 3), axis=0, return_counts=True)
    return [f"{_hex(colours[i])} ({counts[i]} px)" for i in np.argsort(-counts, kind="stable")]


def _hex(rgb: Iterable[int]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in rgb)


def _size(mask: Mask) -> str:
    return f"{mask.shape[1]} × {mask.shape[0]}"
