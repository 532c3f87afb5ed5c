"""Files into pixels: crops, formats, depths, and files that are refused."""

import io
import pathlib
import struct
import subprocess
import sys
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from helpers.own_data import encoded
from urnet_jax.data import decode

ROOT = pathlib.Path(__file__).parents[2]
PHOTO = pathlib.Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"


def png(pixels):
    return encoded(Image.fromarray(pixels))


def test_decode_train_depends_on_seed_epoch_and_index_alone():
    photo = PHOTO.read_bytes()
    crops = [
        decode.decode_train(photo, 32, *numbers)
        for numbers in ((0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert all(crop.shape == (32, 32, 3) and crop.dtype == np.uint8 for crop in crops)
    np.testing.assert_array_equal(crops[0], crops[1])
    for other in crops[2:]:
        assert (crops[0] != other).mean() > 0.5


def test_decode_train_crops():
    # Red rises to the right and green downwards, so a crop tells where it was taken.
    y, x = np.mgrid[:256, :256].astype(np.uint8)
    ramp = png(np.stack([x, y, 0 * x], axis=-1))
    crops = np.stack([decode.decode_train(ramp, 16, 0, e, 0) for e in range(300)]).astype(int)
    red, green = crops[:, 8, :, 0], crops[:, :, 8, 1]
    assert (red[:, -1] > red[:, 0]).all()
    assert (green[:, -1] > green[:, 0]).all()
    # 16 pixels of the crop lie (w - w / 16) apart, from the first centre to the last.
    width = (red[:, -1] - red[:, 0]) * 16 / 15
    height = (green[:, -1] - green[:, 0]) * 16 / 15
    area = width * height / 256**2
    assert area.min() < 0.15 and area.max() > 0.85 and 0.45 < area.mean() < 0.6
    assert (width / height).min() > 0.68 and (width / height).max() < 1.47


@hypothesis.given(
    width=st.integers(1, 3000), height=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1)
)
def test_a_random_window_lies_inside_an_image_of_any_shape(width, height, seed):
    left, top, right, bottom = decode._random_window(np.random.default_rng(seed), width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_decode_eval_of_a_prepared_image_is_its_centre():
    photo = np.asarray(Image.open(PHOTO).resize((300, 256)))
    got = decode.decode_eval(png(photo), 224)
    np.testing.assert_array_equal(got, photo[16:240, 38:262])


@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (50, 1000), (9, 7)])
def test_decode_eval_resizes_the_shorter_side(shape):
    photo = np.asarray(Image.open(PHOTO).resize(shape[::-1]))
    got = decode.decode_eval(png(photo), 56)
    assert got.shape == (56, 56, 3)
    # 7/8 of the shorter side, centred, is what remains to be seen.
    side = min(shape) * 7 / 8
    top, left = (shape[0] - side) / 2, (shape[1] - side) / 2
    box = (left, top, left + side, top + side)
    want = Image.fromarray(photo).resize((56, 56), Image.Resampling.BILINEAR, box=box)
    assert abs(got.astype(int) - np.asarray(want)).mean() < 8


def test_grey_images_become_colour():
    grey = png(np.asarray(Image.open(PHOTO).convert("L")))
    for image in (decode.decode_eval(grey, 32), decode.decode_train(grey, 32, 0, 0, 0)):
        assert image.shape == (32, 32, 3)
        np.testing.assert_array_equal(image[..., 0], image[..., 2])


def jpeg(pixels, mode="RGB", **settings):
    return encoded(Image.fromarray(pixels).convert(mode), "JPEG", **settings)


def by_pil(file, size, *numbers):
    """The same crop in the plain way."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    image = image.crop(decode.draw_window(*image.size, *numbers))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("size", "off"), [(300, 0.3), (60, 2.0), (15, 4.0)], ids=["whole", "halved", "eighths"]
)
def test_decode_train_gives_what_pil_gives(size, off):
    photo = PHOTO.read_bytes()
    for epoch in range(20):
        got, want = (f(photo, size, 0, epoch, 0) for f in (decode.decode_train, by_pil))
        assert abs(got.astype(int) - want).mean() < off


@hypothesis.given(
    width=st.integers(1, 200), height=st.integers(1, 200), shrinkable=st.floats(0.01, 50)
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_no_image_is_made_smaller_than_asked(width, height, shrinkable):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    decoded = decode._decode(jpeg(pixels), width, height, shrinkable)
    factor = max(f for f in (1, 2, 4, 8) if f <= max(1, shrinkable / 2))
    assert decoded.shape == (-(-height // factor), -(-width // factor), 3)
    crop = decode.decode_train(jpeg(pixels), 16, 0, 0, 0)
    assert crop.shape == (16, 16, 3)


def test_files_that_only_pil_reads():
    photo = np.asarray(Image.open(PHOTO))
    for mode, off in (("L", 1.5), ("CMYK", 3.0)):
        file = jpeg(photo, mode)
        got, want = (f(file, 64, 0, 3, 0).astype(int) for f in (decode.decode_train, by_pil))
        assert abs(got - want).mean() < off, mode
    whole = jpeg(photo)
    # Bytes that do not belong there are passed over, as PIL does; a missing end is an error.
    odd = whole[:-2] + b"\0\0\0" + whole[-2:]
    assert decode.decode_train(odd, 64, 0, 0, 0).shape == (64, 64, 3)
    with pytest.raises(decode.BadImageError, match="truncated"):
        decode.decode_train(whole[: len(whole) // 2], 64, 0, 0, 0)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_window_may_touch_the_edge_of_an_image_of_any_side(factor):
    for side in range(3, 500):
        width = -(-side // factor)
        pixels = np.full((3, width, 3), 100, np.uint8)
        for left in (0, 1, side / 3):
            box = (left * width / side, 0.0, side * width / side, 3.0)
            assert (decode._resized_crop(pixels, box, 2) == 100).all()


def by_all(file, size):
    """A file decoded in each of the three ways."""
    return (
        decode.decode_whole(file, size),
        decode.decode_eval(file, size),
        decode.decode_train(file, size, 0, 0, 0),
    )


def png_of_16_bits(pixels):
    """A colour PNG of 16 bits, which PIL reads but does not write."""
    height, width, _ = pixels.shape

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_images_of_16_bits_are_those_of_8():
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    files = {
        "grey PNG": png(grey),
        "grey TIFF": encoded(Image.fromarray(grey), "TIFF"),
        "grey TIFF of 32 bits": encoded(Image.fromarray(grey.astype(np.int32)), "TIFF"),
        "colour PNG": png_of_16_bits(np.stack([grey] * 3, axis=-1)),
    }
    expected = by_all(png((grey >> 8).astype(np.uint8)), 64)
    assert abs(expected[0].mean() - 127.5) < 0.5
    for name, file in files.items():
        for got, want in zip(by_all(file, 64), expected, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=name)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_all_modes_become_rgb_as_pil_converts_them(mode):
    image = Image.open(PHOTO).resize((64, 64)).convert(mode)
    file = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    got = decode.decode_whole(file, 64)
    np.testing.assert_array_equal(got, np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "it is in no format that PIL knows"),
        (b"no image", "it is in no format that PIL knows"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "its pixels are floats"),
        (encoded(Image.new("I", (8, 8), 70_000), "TIFF"), "integers of more than 16 bits"),
        (png(np.asarray(Image.open(PHOTO)))[:5000], "truncated"),
        (PHOTO.read_bytes()[:5000], "truncated"),
    ],
    ids=["empty", "text", "floats", "32 bits", "half a PNG", "half a JPEG"],
)
def test_what_cannot_be_decoded_is_refused_with_the_reason(file, reason):
    for way in (decode.decode_whole, decode.decode_eval):
        with pytest.raises(decode.BadImageError, match=reason):
            way(file, 8)
    with pytest.raises(decode.BadImageError, match=reason):
        decode.decode_train(file, 8, 0, 0, 0)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_too_many_pixels_are_refused_before_they_are_decoded(file_format):
    file = encoded(Image.new("L", (14_000, 14_000)), file_format)
    message = "it has more than 178,956,970 pixels: make it smaller"
    with pytest.raises(decode.BadImageError, match=message):
        decode.decode_whole(file, 8)
    with pytest.raises(decode.BadImageError, match=message):
        decode.decode_eval(file, 8)
    with pytest.raises(decode.BadImageError, match=message):
        decode.decode_train(file, 8, 0, 0, 0)


def test_decoding_does_not_import_jax():
    script = """
import sys
import urnet_jax.data.decode, urnet_jax.data.records, urnet_jax.data.splits, urnet_jax.data.sources
print(sorted({"jax", "flax", "grain", "tensorflow_datasets", "sklearn"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr
