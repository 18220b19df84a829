"""Generated JPEG files with the size and detail of ImageNet's photographs, to measure with."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from experiments import sampling

WIDTH, HEIGHT = 500, 375  # The size of most ImageNet images.
QUALITY = 87  # Gives files of about 110 kB, ImageNet's average.
FOLDERS = ("train/a", "train/b", "validation/a", "validation/b")


def make_folder(folder: Path, count: int) -> int:
    """Write `count` training images and two validation images, for `folder.FolderSource`.

    Returns:
      The mean size of an image file in bytes.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    places = [FOLDERS[i % 2] for i in range(count)] + list(FOLDERS[2:])
    files = [encode(make_pixels(i)) for i in range(len(places))]
    for i, (place, file) in enumerate(zip(places, files, strict=True)):
        (folder / place / f"{i}.jpg").write_bytes(file)
    return sum(map(len, files)) // len(files)


def make_pixels(
    number: int, width: int = WIDTH, height: int = HEIGHT
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a mostly gray image of 1/f noise, which has the spectrum of photographs."""
    rng = sampling.rng(number, "photographs")
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf  # Zero mean.
    layers = []
    for _ in range(4):
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency
        layer = np.fft.irfft2(spectrum, (height, width))
        layers.append(layer / layer.std())
    gray, colors = layers[0], np.stack(layers[1:], -1)
    return np.clip(118 + 55 * gray[..., None] + 20 * colors, 0, 255).astype(np.uint8)


def encode(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Encode an image as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
