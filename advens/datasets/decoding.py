"""From a picture to bytes: decoding, colour, resizing. One place, so all sources agree."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advens.datasets.source import Bytes
from advens.errors import InputError, first_line
from advens.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".tga", ".ico", ".avif",
)  # fmt: skip
"""File names that end so are images (any case)."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
"""What PIL's decoders raise on damaged files."""

ORIENTATION, SIDEWAYS = 0x0112, 5
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation: how PIL's ``transpose`` undoes it (0 and 1 flip, 2 to 4 turn, 5 and 6 do both)."""

WIDE_MODES = ("I", "F")  # and "I;16", "I;16B", ...: PIL would clip these to 255, not scale them


def decode(encoded: bytes | Path, name: str) -> Bytes:
    """The pixels of an encoded image (PNG, JPEG, ...) as a viewer shows them, (3, H, W).

    An EXIF orientation is honoured: cameras store pixels as they were read and say how to turn them.

    Args:
        encoded: the file's bytes, or where it lies.
        name: what to call it in an error.

    Raises:
        InputError: it is not an image, is cut off, or has more than 8 bits a channel.
    """
    from PIL import Image

    image = _open(encoded, name, load=True)
    turn = TURNS.get(_orientation(image))
    return rgb(image if turn is None else image.transpose(Image.Transpose(turn)), name)


def header_size(path: Path, name: str) -> tuple[int, int]:
    """(H, W) from an image's header. Raises InputError when there is none."""
    image = _open(path, name, load=False)
    if _orientation(image) >= SIDEWAYS:
        return image.width, image.height
    return image.height, image.width


def rgb(image: Image.Image, name: str) -> Bytes:
    """(3, H, W) bytes of a PIL image: grey is repeated, a palette looked up, alpha dropped.

    Raises InputError for more than 8 bits a channel.
    """
    if image.mode.partition(";")[0] in WIDE_MODES:
        raise InputError(
            f"image {name} has more than 8 bits a channel (PIL mode '{image.mode}'); "
            f"save it as an 8-bit PNG"
        )
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


@dataclass(frozen=True)
class Crop:
    """The centre square of an image whose shorter side was resized, as networks are evaluated.

    Args:
        size: side of the square.
        shorter: what the shorter side is resized to before; ``size`` when None.
        interpolation: ``bicubic`` or ``bilinear``, with antialiasing (PIL, integer arithmetic).
    """

    size: int
    shorter: int | None = None
    interpolation: str = "bicubic"

    def __str__(self) -> str:
        """For fingerprints: the size alone where the rest is as by default."""
        shorter = self.shorter or self.size
        default = (shorter, self.interpolation) == (self.size, "bicubic")
        return str(self.size) if default else f"{self.size} of {shorter} {self.interpolation}"

    def __call__(self, pixels: Bytes) -> Bytes:
        """(3, H, W) to (3, size, size); lengths and offsets are rounded as torchvision and timm do."""
        from PIL import Image

        height, width = pixels.shape[1:]
        shorter, wanted = min(height, width), self.shorter or self.size
        if shorter != wanted:
            height, width = int(wanted * height / shorter), int(wanted * width / shorter)
            image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
            method = Image.Resampling[self.interpolation.upper()]
            pixels = np.asarray(image.resize((width, height), method)).transpose(2, 0, 1)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return np.ascontiguousarray(pixels[:, top : top + self.size, left : left + self.size])


def from_any(image: Any, name: str) -> Bytes:
    """(3, H, W) bytes of a PIL image or an array as data sets in the wild hand them out.

    Args:
        image: a PIL image; uint8 (H, W), (H, W, 1|3) or (1|3, H, W); or a float tensor or array
            (1|3, H, W) in [0, 1], which is rounded to 8 bits.
        name: what to call it in an error.
    """
    if hasattr(image, "convert"):
        return rgb(image, name)
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or (array.shape[0] not in (1, 3) and array.shape[2] not in (1, 3)):
        raise InputError(f"image {name} has shape {array.shape}; it must be (3, H, W) or (1, H, W)")
    if array.shape[0] not in (1, 3):
        array = array.transpose(2, 0, 1)
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(
                f"image {name} has values from {array.min():.3g} to {array.max():.3g}; floats must "
                f"lie in [0, 1], without normalisation"
            )
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"image {name} is of type {array.dtype}; it must be uint8 or float")
    # a copy: torch warns of views that are read-only
    return np.array(np.broadcast_to(array, (3, *array.shape[1:])), dtype=np.uint8, order="C")


def _orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF counts; 1 is upright, and so is an image whose tags are damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever a damaged block of tags leads to
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _open(encoded: bytes | Path, name: str, load: bool) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with (
            io.BytesIO(encoded) if isinstance(encoded, bytes) else open_regular(encoded) as file,
            Image.open(file) as opened,
        ):
            image: Image.Image = opened
            if load:
                image.load()
            _orientation(image)  # read while the file is open, and kept
            return image
    except FileNotFoundError:
        raise InputError(f"image {name} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"image {name} is not an image that PIL can read") from None
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise InputError(f"image {name} cannot be decoded: {first_line(error)}") from error
