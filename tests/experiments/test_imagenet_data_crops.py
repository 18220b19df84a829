"""Crops, flips and distortion of images, against NumPy."""

import io

import numpy as np
import pytest
from PIL import Image

from experiments.studies.imagenet.data import crops

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 40, 3), np.uint8)


def encoded(pixels, kind="JPEG", **options):
    content = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(content, kind, **options)
    return content.getvalue()


def triangle_weights(size, start, stop, length):
    """Compute the weights (length, size) of Pillow's bilinear filter in float64.

    At the edge of a window, the filter also averages pixels outside of it.
    """
    scale = (stop - start) / length
    centers = start + (np.arange(length) + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centers[:, None]) / max(scale, 1)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)


def resize(pixels, window, width, height):
    left, top, right, bottom = window
    rows = triangle_weights(pixels.shape[0], top, bottom, height)
    columns = triangle_weights(pixels.shape[1], left, right, width)
    return np.einsum("ih,jw,hwc->ijc", rows, columns, pixels.astype(np.float64))


# Pillow rounds by 1/2 after each of two passes, over columns and over rows.
ROUNDED = 1.01


def test_windows_are_of_the_areas_and_aspect_ratios_asked_for():
    rng, areas, ratios = np.random.default_rng(0), [], []
    for _ in range(4_000):
        left, top, right, bottom = crops.sample_window(rng, 500, 500, (0.08, 0.6))
        assert 0 <= left < right <= 500
        assert 0 <= top < bottom <= 500
        areas.append((right - left) * (bottom - top) / 500**2)
        ratios.append((right - left) / (bottom - top))
    # Rounding to whole pixels changes the sides, which are at least 122, by less than .5 %.
    for drawn, low, high in ((areas, 0.08, 0.6), (ratios, 3 / 4, 4 / 3)):
        assert low * 0.99 < min(drawn) < max(drawn) < high * 1.01
        # Uniform: the standard error of the quartiles is 0.7 % of the span.
        quartiles = (np.quantile(drawn, [0.25, 0.5, 0.75]) - low) / (high - low)
        np.testing.assert_allclose(quartiles, [0.25, 0.5, 0.75], atol=0.03)


def test_windows_are_as_likely_everywhere_and_fit_into_any_image():
    rng = np.random.default_rng(0)
    drawn = [crops.sample_window(rng, 100, 80, (0.2, 0.2), (1, 1)) for _ in range(2_000)]
    assert {window.right - window.left for window in drawn} == {40}
    lefts = [window.left for window in drawn]
    assert (min(lefts), max(lefts)) == (0, 60)
    assert abs(np.mean(lefts) - 30) < 2
    assert max(window.bottom for window in drawn) == 80
    # If no window fits: the largest centered one with an allowed aspect ratio.
    assert crops.sample_window(rng, 300, 30, (1, 1)) == (130, 0, 170, 30)
    assert crops.sample_window(rng, 30, 300, (1, 1)) == (0, 130, 30, 170)
    assert crops.sample_window(rng, 1, 1) == (0, 0, 1, 1)


@pytest.mark.parametrize("size", [12, 60])
def test_a_random_crop_is_its_window_resized(size):
    for seed in range(5):
        crop = crops.random_crop(np.random.default_rng(seed), Image.fromarray(PIXELS), size)
        window = crops.sample_window(np.random.default_rng(seed), 40, 30)
        expected = resize(PIXELS, window, size, size)
        np.testing.assert_allclose(np.asarray(crop), expected, rtol=0, atol=ROUNDED)


def test_a_flip_is_a_mirror_image_one_time_in_two():
    image = Image.fromarray(PIXELS)
    flipped = [np.asarray(crops.flip(np.random.default_rng(i), image)) for i in range(200)]
    mirrored = [np.array_equal(each, PIXELS[:, ::-1]) for each in flipped]
    assert all(m or np.array_equal(each, PIXELS) for m, each in zip(mirrored, flipped, strict=True))
    assert 75 < sum(mirrored) < 125


@pytest.mark.parametrize("strength", [0, 0.3, 1])
def test_distortion_is_three_blends_in_random_order(strength):
    orders = set()
    for seed in range(20):
        got = np.asarray(
            crops.distort(np.random.default_rng(seed), Image.fromarray(PIXELS), strength)
        )
        if not strength:
            np.testing.assert_array_equal(got, PIXELS)
            continue
        rng = np.random.default_rng(seed)
        factors, order = 1 + strength * rng.uniform(-0.5, 0.5, 3), rng.permutation(3)
        orders.add(tuple(order))
        expected = PIXELS.astype(np.float64)
        for i in order:
            gray = expected @ [0.299, 0.587, 0.114]
            others = 0.0, gray.mean(), gray[..., None]  # Brightness, contrast, saturation.
            expected = np.clip(others[i] + factors[i] * (expected - others[i]), 0, 255)
        # Pillow truncates after each blend, and when it computes gray. This costs 1 and at most
        # strength / 2 per blend, scaled by at most 1 + strength / 2 in each later blend; .5 on
        # average.
        most = 1 + strength / 2
        np.testing.assert_allclose(got, expected, rtol=0, atol=most * (1 + most + most**2))
        assert np.abs(got - expected).mean() < 2
    assert not strength or len(orders) == 6


@pytest.mark.parametrize("strength", [0, 0.3, 1])
def test_lighting_shifts_all_pixels_along_the_components_of_color(strength):
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = crops.COLOR_COMPONENTS / (255 * values)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-4)  # Given with four digits.
    for seed in range(20):
        rng, image = np.random.default_rng(seed), Image.fromarray(PIXELS)
        before = np.asarray(crops.distort(rng, image, strength), np.float64)
        got = np.asarray(crops.distort(np.random.default_rng(seed), image, strength, lighting=0.5))
        if not strength:
            np.testing.assert_array_equal(got, PIXELS)
            continue
        drawn = rng.normal(0, 0.5 * strength, 3)
        shift = 255 * sum(drawn[i] * values[i] * vectors[:, i] for i in range(3))
        expected = np.clip(before + shift, 0, 255)
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.5 + 1e-9)  # Rounding.


@pytest.mark.parametrize("shape", [(30, 40), (40, 30), (32, 32)])
def test_a_single_crop_is_the_middle_of_the_resized_image(shape):
    pixels = RNG.integers(0, 256, (*shape, 3), np.uint8)
    crop = crops.center_crop(Image.fromarray(pixels), 28)
    height, width = (max(32, round(side * 32 / min(shape))) for side in shape)
    whole = resize(pixels, (0, 0, shape[1], shape[0]), width, height)
    top, left = (height - 28) // 2, (width - 28) // 2
    expected = whole[top : top + 28, left : left + 28]
    np.testing.assert_allclose(np.asarray(crop), expected, rtol=0, atol=ROUNDED)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500)])
def test_the_144_crops_are_of_as_many_windows_inside_the_image(width, height):
    windows = crops.windows_144(width, height, 224)
    assert len(set(windows)) == 144
    assert {window.short for window in windows} == {256, 288, 320, 352}
    for short, (left, top, right, bottom), _ in windows:
        wide, high = (round(side * short / 375) for side in (width, height))
        assert 0 <= left < right <= wide
        assert 0 <= top < bottom <= high
        assert right - left == bottom - top
        assert right - left in (224, short)
    # The squares at both ends, and the center of the middle one.
    wide, high = (round(side * 256 / 375) for side in (width, height))
    of_smallest = {window.window for window in windows if window.short == 256}
    assert {(0, 0, 256, 256), (wide - 256, high - 256, wide, high)} <= of_smallest
    left, top = (wide - 256) // 2 + 16, (high - 256) // 2 + 16
    assert (left, top, left + 224, top + 224) in of_smallest
    assert len(set(crops.windows_144(24, 24, 28))) == 48  # The three squares coincide.


def test_the_144_crops_are_these_windows():
    size, made = 14, crops.crops_144(Image.fromarray(PIXELS), 14)
    assert made.shape == (144, size, size, 3)
    assert made.dtype == np.uint8
    for crop, (short, window, mirrored) in zip(made, crops.windows_144(40, 30, size), strict=True):
        whole = resize(PIXELS, (0, 0, 40, 30), round(40 * short / 30), short)
        left, top, right, bottom = window
        expected = whole[top:bottom, left:right]
        rounded = ROUNDED
        if right - left != size:
            expected, rounded = resize(expected, (0, 0, short, short), size, size), 2 * ROUNDED
        expected = expected[:, ::-1] if mirrored else expected
        np.testing.assert_allclose(crop, expected, rtol=0, atol=rounded)


# ---- Files ---------------------------------------------------------------------------------------


def test_a_large_jpeg_is_decoded_at_a_smaller_size_that_looks_the_same():
    x, y = np.meshgrid(np.arange(640), np.arange(480))
    waves = [np.sin(x / a + y / b) for a, b in ((9, 30), (25, 12), (40, 50))]
    content = encoded((127 + 100 * np.stack(waves, -1)).astype(np.uint8), quality=95)
    whole = Image.fromarray(np.asarray(Image.open(io.BytesIO(content))))
    for crop in (
        lambda image: crops.random_crop(np.random.default_rng(3), image, 32, (0.5, 1)),
        lambda image: crops.center_crop(image, 32),
        lambda image: crops.crops_144(image, 32),
    ):
        drafted = crops.open_image(content)
        difference = np.asarray(crop(drafted), int) - np.asarray(crop(whole), int)
        assert drafted.width <= 320
        assert np.abs(difference).mean() < 1
    kept = crops.open_image(content)
    crops.random_crop(np.random.default_rng(3), kept, 224, (0.5, 1))
    assert kept.size == (640, 480)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_an_image_of_any_mode_becomes_rgb(mode):
    image = Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    options = {"transparency": bytes(256)} if mode == "P" else {}
    opened = crops.open_image(encoded(image, kind, **options))
    made = crops.random_crop(np.random.default_rng(0), opened, 4)
    np.testing.assert_array_equal(np.asarray(made), np.full((4, 4, 3), 255))


def test_other_files_are_refused():
    for content, got in ((encoded(PIXELS, "GIF"), "47 49 46 38"), (b"", "an empty file")):
        with pytest.raises(ValueError, match=f"expected a JPEG or PNG file, got {got}"):
            crops.open_image(content)
    sixteen = Image.fromarray(np.zeros((4, 4), np.uint16))
    with pytest.raises(ValueError, match="8-bit gray or color, got Pillow mode I;16"):
        crops.open_image(encoded(sixteen, "PNG"))
    thin = Image.new("L", (1, 101))
    with pytest.raises(ValueError, match="one side at most 100 times the other, got 1x101 pixels"):
        crops.open_image(encoded(thin, "PNG"))
