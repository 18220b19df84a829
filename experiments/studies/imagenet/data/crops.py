"""Crops, mirroring and photometric distortion of Pillow images.

All resizing uses Pillow's bilinear filter, which averages when it shrinks an image.

References:
  Szegedy et al., "Going Deeper with Convolutions", 2014, sections 6 and 7
  Howard, "Some Improvements on Deep Convolutional Neural Network Based Image Classification", 2013
  Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012
"""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, UnidentifiedImageError

FORMATS = ("JPEG", "PNG")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # Convertible to 8-bit RGB.
THINNEST = 100  # A longer image may not fit into memory once its shorter side is 352 pixels.
ATTEMPTS = 10  # Draws of a window that fits.
ENHANCEMENTS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
# Principal components of ImageNet's colors on a scale from 0 to 255, one per column: RGB unit
# vectors times the eigenvalues. The numbers are those of AlexNet, as usually quoted.
COLOR_COMPONENTS = 255 * np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
) * [0.2175, 0.0188, 0.0045]  # fmt: skip
# A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, which is faster. This is done if each side
# then still has at least twice the wanted number of pixels, Pillow's own criterion for thumbnails:
# the gray levels of 1/f noise change by .6 on average. With a factor of 1 they change by 2.5.
DRAFT_GAP = 2
SCALES = (256, 288, 320, 352)  # Shorter sides at which the 144 crops of 224 pixels are taken.
CROPS = 144


class Window(NamedTuple):
    """A part of an image, in pixels; right and bottom are exclusive."""

    left: float
    top: float
    right: float
    bottom: float


class Crop(NamedTuple):
    """A part of an image after resizing."""

    short: int
    """shorter side of the resized image in pixels"""
    window: Window
    """a square of the resized image, resized again if it is larger than the crop"""
    mirrored: bool


def open_image(image: bytes | UInt8[np.ndarray, "H W 3"]) -> Image.Image:
    """Open an image from the content of a JPEG or PNG file, without decoding it, or from pixels.

    As is usual for ImageNet, the EXIF orientation is ignored.

    Raises:
      OSError, ValueError, SyntaxError, Image.DecompressionBombError: not a usable image.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    try:
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
    except UnidentifiedImageError:  # Its message only names a Python object.
        begin = image[:8].hex(" ") or "an empty file"
        raise ValueError(f"expected a {' or '.join(FORMATS)} file, got {begin}") from None
    if opened.mode not in MODES:
        raise ValueError(f"expected 8-bit gray or color, got Pillow mode {opened.mode}")
    if max(opened.size) > THINNEST * min(opened.size):
        raise ValueError(
            f"expected one side at most {THINNEST} times the other, got {opened.width}x"
            f"{opened.height} pixels"
        )
    return opened


def sample_window(
    rng: np.random.Generator,
    width: int,
    height: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Window:
    """Draw a window whose share of the image's area and aspect ratio are uniformly distributed.

    A window that does not fit is redrawn; after ten attempts, return the largest centered window
    with an aspect ratio within bounds.
    """
    for _ in range(ATTEMPTS):
        pixels, ratio = rng.uniform(*area) * width * height, rng.uniform(*aspect)
        wide, high = round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            left, top = rng.integers(width - wide + 1), rng.integers(height - high + 1)
            return Window(int(left), int(top), int(left) + wide, int(top) + high)
    wide = min(width, max(1, round(height * aspect[1])))
    high = min(height, max(1, round(width / aspect[0])))
    left, top = (width - wide) // 2, (height - high) // 2
    return Window(left, top, left + wide, top + high)


def random_crop(
    rng: np.random.Generator,
    image: Image.Image,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """Resize a random window to `size` x `size` pixels.

    Args:
      rng: draws the window.
      image: image of any size; an undecoded JPEG is decoded at a smaller size if that suffices.
      size: side of the result in pixels.
      area: smallest and largest share of the image's area.
      aspect: smallest and largest width / height.

    Returns:
      An RGB image.

    Example:
      >>> import numpy as np
      >>> from PIL import Image
      >>> from experiments.studies.imagenet.data.crops import random_crop
      >>> random_crop(np.random.default_rng(0), Image.new("L", (50, 40)), 32).size
      (32, 32)

    References:
      Szegedy et al. 2014, section 6: "patches of the image whose size is distributed evenly between
      8% and 100% of the image area and whose aspect ratio is chosen randomly between 3/4 and 4/3".
    """
    window = sample_window(rng, *image.size, area, aspect)
    side = min(window.right - window.left, window.bottom - window.top)
    shrunk = _draft(image, side / size)
    window = Window(*(edge / shrunk for edge in window))
    width, height = image.size  # Rounded up by the draft.
    window = window._replace(right=min(window.right, width), bottom=min(window.bottom, height))
    return to_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=window)


def flip(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Mirror an image horizontally with probability 1/2."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def distort(
    rng: np.random.Generator, image: Image.Image, strength: float, lighting: float = 0.0
) -> Image.Image:
    """Change brightness, contrast and saturation in random order, then the color of the light.

    Each of the first three uses Pillow's `ImageEnhance` with a random factor f: f * image
    + (1 - f) * other, where `other` is black, the mean gray level, or the image in gray. Then all
    pixels are shifted by one random combination of the principal components of ImageNet's colors.

    Args:
      rng: draws order, factors and shift.
      image: RGB image.
      strength: factors are uniform between 1 - strength / 2 and 1 + strength / 2; 1 is the
        source's, 0.5 to 1.5, and 0 changes nothing.
      lighting: standard deviation, at a strength of 1, of each component's normally distributed
        coefficient; the source's is .1.

    References:
      Howard 2013, section 2.2, with the lighting noise of Krizhevsky et al. 2012, section 4.1.
    """
    if strength == 0:
        return image
    factors = 1 + strength * rng.uniform(-0.5, 0.5, len(ENHANCEMENTS))
    for i in rng.permutation(len(ENHANCEMENTS)):
        image = ENHANCEMENTS[i](image).enhance(float(factors[i]))
    if lighting == 0:
        return image
    shift = COLOR_COMPONENTS @ rng.normal(0, lighting * strength, 3)
    levels = np.clip(np.rint(np.arange(256) + shift[:, None]), 0, 255).astype(np.uint8)
    return image.point(levels.ravel().tolist())


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side of an image to size * 256 / 224, and crop its center.

    Returns:
      An RGB image of `size` x `size` pixels.
    """
    resized = _resize_shorter_side(image, _scaled(SCALES[0], size))
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def windows_144(width: int, height: int, size: int) -> list[Crop]:
    """List the 144 crops of an image.

    The shorter side is resized to 256, 288, 320 and 352 pixels (for crops of 224; in proportion for
    other sizes). From each of these images come three squares: left, center and right, or top,
    center and bottom. Each square gives six crops: the four corners, the center, and the whole
    square resized. Each crop is also mirrored.
    """
    crops = []
    for scale in SCALES:
        short = _scaled(scale, size)
        wide, high = _size_of(width, height, short)
        for third in range(3):
            left, top = ((side - short) * third // 2 for side in (wide, high))
            far, middle = short - size, (short - size) // 2
            corners = [(0, 0), (far, 0), (0, far), (far, far), (middle, middle)]
            windows = [
                Window(left + x, top + y, left + x + size, top + y + size) for x, y in corners
            ]
            windows.append(Window(left, top, left + short, top + short))
            crops += [Crop(short, each, mirrored) for each in windows for mirrored in (False, True)]
    return crops


def crops_144(image: Image.Image, size: int) -> UInt8[np.ndarray, "144 size size 3"]:
    """Return the 144 crops of `windows_144`.

    References:
      Szegedy et al. 2014, section 7.
    """
    crops = np.empty((CROPS, size, size, 3), np.uint8)
    # An image is decoded only once, so draft it for the largest scale.
    _draft(image, min(image.size) / _scaled(SCALES[-1], size))
    image = to_rgb(image)
    resized = {}
    for i, (short, window, mirrored) in enumerate(windows_144(*image.size, size)):
        if short not in resized:
            resized[short] = _resize_shorter_side(image, short)
        if mirrored:
            crops[i] = crops[i - 1][:, ::-1]
            continue
        part = resized[short].crop(window)
        if part.size != (size, size):
            part = part.resize((size, size), Image.Resampling.BILINEAR)
        crops[i] = np.asarray(part)
    return crops


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an image and convert it to RGB, without transparency."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about a direct conversion.
    return image.convert("RGB")


def _draft(image: Image.Image, shrinks: float) -> float:
    """Prepare an undecoded JPEG to be decoded at a smaller size, if it will be shrunk enough.

    Returns:
      The factor by which it gets smaller.
    """
    factor = max((each for each in (8, 4, 2, 1) if shrinks >= DRAFT_GAP * each), default=1)
    if factor == 1 or image.format != "JPEG":
        return 1.0
    width = image.width
    drafted = image.draft("RGB", (image.width // factor, image.height // factor))
    return 1.0 if drafted is None else width / drafted[1][2]


def _resize_shorter_side(image: Image.Image, short: int) -> Image.Image:
    size = _size_of(*image.size, short)
    _draft(image, min(image.size) / short)
    return to_rgb(image).resize(size, Image.Resampling.BILINEAR)


def _size_of(width: int, height: int, short: int) -> tuple[int, int]:
    if width <= height:
        return short, max(short, round(height * short / width))
    return max(short, round(width * short / height)), short


def _scaled(scale: int, size: int) -> int:
    return round(scale * size / 224)
