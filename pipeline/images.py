"""One image or mask file, decoded and resized: every published format in, one pixel format out."""

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Never

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import InputError

ImageU8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# What Pillow's decoders raise on damaged bytes.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
VALUES_SHOWN = 8

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


def read_image(path: Path) -> ImageU8:
    """An image file as 8-bit RGB, upright.

    EXIF orientation is applied; grey is repeated over three channels; an alpha channel is dropped,
    not composited; 16-bit grey is mapped from its full range, 65535 to 255.

    returns    (H, W, 3) uint8, 0…255
    raises     ImageError when the file is missing, damaged, not an image, multi-frame, too large,
               or has pixels of more than 16 bits
    """
    return _rgb_u8(_load(path), path)


def read_pillow(image: Image.Image) -> ImageU8:
    """An image that Pillow has opened or made, as 8-bit RGB, upright: as read_image does.

    returns    (H, W, 3) uint8, 0…255
    raises     ImageError as read_image does
    """
    path = Path(getattr(image, "filename", "") or "image")
    with _named_faults(path):
        upright = _upright(image, path)
    return _rgb_u8(upright, path)


def read_mask(path: Path, *, labels: bool = False) -> Mask:
    """A mask file as foreground (True) and background (False), upright.

    A palette mask is read by index, an RGB or RGBA mask by its luminance with alpha ignored, any
    other by its values. These must be 0, one other value, or both; with `labels` they are object
    labels, of any number, and foreground is label > 0.

    returns    (H, W) bool
    raises     ImageError as read_image does, and when the mask is not two-valued with background 0
    """
    values = _mask_values(_load(path), path)
    if not labels:
        _check_two_valued(values, path)
    return values > 0


def read_union(paths: Sequence[Path], *, labels: bool = False) -> Mask:
    """The union of one sample's masks, each read as read_mask does.

    returns    (H, W) bool
    raises     ImageError as read_mask does, and when the masks differ in size
    """
    assert paths, "a sample has at least one mask"
    union = read_mask(paths[0], labels=labels)
    for path in paths[1:]:
        mask = read_mask(path, labels=labels)
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
    with _named_faults(path), Image.open(path) as image:
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


def _rgb_u8(image: Image.Image, path: Path) -> ImageU8:
    if image.mode in SIXTEEN_BIT_MODES:
        grey = (_sixteen_bit(image, path).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(_rgb(image, path))


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    # By way of RGBA: a palette with transparency would otherwise be warned about.
    through = image.convert("RGBA") if image.mode in ("P", "PA") else image
    try:
        return through.convert("RGB")
    except ValueError as error:
        detail = f"has colour mode {image.mode}, which has no way to RGB"
        raise ImageError(path, "unreadable", detail, "save it as 8-bit RGB or grey") from error


def _sixteen_bit(image: Image.Image, path: Path) -> npt.NDArray[np.uint16]:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        _refuse_depth(image, path)
    return values.astype(np.uint16)


def _refuse_depth(image: Image.Image, path: Path) -> Never:
    detail = f"has pixels of mode {image.mode} beyond 16 bits, whose range is unknown"
    raise ImageError(path, "unreadable", detail, "save it with 8 or 16 bits a channel")


def _mask_values(image: Image.Image, path: Path) -> npt.NDArray[np.uint16]:
    """Index of a palette mask, value of a grey one, luminance of a coloured one."""
    if image.mode in SIXTEEN_BIT_MODES:
        return _sixteen_bit(image, path)
    if image.mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("LA", "PA"):
        return np.asarray(image.getchannel(0)).astype(np.uint16)
    return np.asarray(_rgb(image, path).convert("L")).astype(np.uint16)


def _check_two_valued(values: npt.NDArray[np.uint16], path: Path) -> None:
    found = np.flatnonzero(np.bincount(values.ravel())).tolist()
    if len(found) == 1 or (len(found) == 2 and found[0] == 0):
        return
    shown = ", ".join(str(value) for value in found[:VALUES_SHOWN])
    more = f" and {len(found) - VALUES_SHOWN} more" if len(found) > VALUES_SHOWN else ""
    detail = f"has the values {shown}{more}; a mask has background 0 and one foreground value"
    fix = "threshold the mask and save it as PNG (JPEG blurs a mask)"
    raise ImageError(path, "mask-values", detail, fix)


def _size(mask: Mask) -> str:
    return f"{mask.shape[1]} × {mask.shape[0]}"
