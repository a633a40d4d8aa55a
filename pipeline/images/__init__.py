"""Images and masks as files: found, decoded from every published format, resized, shown."""

from pipeline.images.inside_out import ENCLOSED, is_inside_out
from pipeline.images.reading import (
    FULL,
    Deep,
    ImageError,
    ImageU8,
    Mask,
    Window,
    parse_foreground,
    read_image,
    read_mask,
    read_pillow,
    read_pixels,
    read_union,
    resize_image,
    resize_mask,
    stretch,
    window_of,
)

__all__ = [
    "ENCLOSED",
    "FULL",
    "Deep",
    "ImageError",
    "ImageU8",
    "Mask",
    "Window",
    "is_inside_out",
    "parse_foreground",
    "read_image",
    "read_mask",
    "read_pillow",
    "read_pixels",
    "read_union",
    "resize_image",
    "resize_mask",
    "stretch",
    "window_of",
]
