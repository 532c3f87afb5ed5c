import io
import pathlib
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from configs import digits
from urnet_jax.data import augment
from urnet_jax.data.sources import open_split
from urnet_jax.errors import UserError

PADDING = 2
PHOTO = pathlib.Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"


def train_images() -> Any:
    return open_split(digits.get_config().data, "train").images


@pytest.fixture(scope="module")
def images():
    return train_images()[:512]


def augmented(images, index=None, epoch=0, seed=0, mode="crop"):
    index = np.arange(len(images)) if index is None else index
    run = jax.jit(augment.augment_images, static_argnames=("seed", "mode", "padding"))
    epochs = np.full(len(images), epoch, np.int32)
    return np.asarray(run(images, index, epochs, seed=seed, mode=mode, padding=PADDING))


def windows(image):
    """Each window of the zero-padded image, by its top left corner."""
    height, width, _ = image.shape
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    places = range(2 * PADDING + 1)
    return {(y, x): padded[y : y + height, x : x + width] for y in places for x in places}


def places(image, crop):
    return [place for place, window in windows(image).items() if (window == crop).all()]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_crop_is_a_window_of_the_padded_image(images):
    crops = augmented(images)
    assert crops.dtype == np.uint8 and crops.shape == images.shape
    found = [places(image, crop) for image, crop in zip(images, crops, strict=True)]
    assert all(found)
    drawn = {place[0] for place in found if len(place) == 1}
    assert len(drawn) == (2 * PADDING + 1) ** 2


def test_crop_flip_also_mirrors_half_of_the_images(images):
    crops = augmented(images, mode="crop_flip")
    plain = np.array([bool(places(i, c)) for i, c in zip(images, crops, strict=True)])
    mirrored = np.array([bool(places(i, c[:, ::-1])) for i, c in zip(images, crops, strict=True)])
    assert (plain | mirrored).all()
    assert 0.4 < mirrored.mean() < 0.6


def test_an_augmentation_depends_on_seed_epoch_and_index_alone(images):
    index = np.arange(1000, 1000 + len(images))
    crops = augmented(images, index, mode="crop_flip")
    order = np.random.default_rng(0).permutation(len(images))[:100]
    shuffled = augmented(images[order], index[order], mode="crop_flip")
    np.testing.assert_array_equal(shuffled, crops[order])
    for change in ({"epoch": 1}, {"seed": 1}, {"index": index + 1}):
        other = augmented(images, **{"index": index, "mode": "crop_flip", **change})
        assert (other != crops).any(axis=(1, 2, 3)).mean() > 0.9


def test_none_leaves_images_alone(images):
    np.testing.assert_array_equal(augmented(images, mode="none"), images)


def test_random_resized_crop_mirrors_half_of_what_was_cropped_in_decoding(images):
    crops = augmented(images, mode="random_resized_crop")
    same = (crops == images).all(axis=(1, 2, 3))
    mirrored = (crops == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert 0.4 < mirrored.mean() < 0.6
    other = augmented(images, mode="random_resized_crop", epoch=1)
    assert 0.3 < (crops != other).any(axis=(1, 2, 3)).mean() < 0.7


def test_an_unknown_mode_is_an_error(images):
    with pytest.raises(UserError, match="data.augment is 'flip'; expected one of none, crop"):
        augmented(images, mode="flip")


def test_normalize_by_hand():
    pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    got = jax.jit(augment.normalize)(pixels, *augment.normalization("cifar10"))
    assert got.dtype == np.float32
    want = [-0.485 / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(got.ravel(), want, rtol=1e-6)


def test_digits_are_normalized_to_mean_0_and_deviation_1():
    pixels = np.asarray(augment.normalize(train_images(), *augment.normalization("digits")))
    assert abs(pixels.mean()) < 1e-3 and abs(pixels.std() - 1) < 1e-3


def test_own_data_is_normalized_as_imagenet_is():
    assert augment.normalization("flowers") == augment.normalization("imagenet2012")


def test_decode_train_depends_on_seed_epoch_and_index_alone():
    photo = PHOTO.read_bytes()
    crops = [
        augment.decode_train(photo, 32, *numbers)
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
    crops = np.stack([augment.decode_train(ramp, 16, 0, e, 0) for e in range(300)]).astype(int)
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
    left, top, right, bottom = augment._random_window(np.random.default_rng(seed), width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_decode_eval_of_a_prepared_image_is_its_centre():
    photo = np.asarray(Image.open(PHOTO).resize((300, 256)))
    got = augment.decode_eval(png(photo), 224)
    np.testing.assert_array_equal(got, photo[16:240, 38:262])


@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (50, 1000), (9, 7)])
def test_decode_eval_resizes_the_shorter_side(shape):
    photo = np.asarray(Image.open(PHOTO).resize(shape[::-1]))
    got = augment.decode_eval(png(photo), 56)
    assert got.shape == (56, 56, 3)
    # 7/8 of the shorter side, centred, is what remains to be seen.
    side = min(shape) * 7 / 8
    top, left = (shape[0] - side) / 2, (shape[1] - side) / 2
    box = (left, top, left + side, top + side)
    want = Image.fromarray(photo).resize((56, 56), Image.Resampling.BILINEAR, box=box)
    assert abs(got.astype(int) - np.asarray(want)).mean() < 8


def test_grey_images_become_colour():
    grey = png(np.asarray(Image.open(PHOTO).convert("L")))
    for image in (augment.decode_eval(grey, 32), augment.decode_train(grey, 32, 0, 0, 0)):
        assert image.shape == (32, 32, 3)
        np.testing.assert_array_equal(image[..., 0], image[..., 2])


def jpeg(pixels, mode="RGB", **settings):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def by_pil(file, size, *numbers):
    """The same crop in the plain way."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    image = image.crop(augment.draw_window(*image.size, *numbers))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("size", "off"), [(300, 0.3), (60, 2.0), (15, 4.0)], ids=["whole", "halved", "eighths"]
)
def test_decode_train_gives_what_pil_gives(size, off):
    photo = PHOTO.read_bytes()
    for epoch in range(20):
        got, want = (f(photo, size, 0, epoch, 0) for f in (augment.decode_train, by_pil))
        assert abs(got.astype(int) - want).mean() < off


@hypothesis.given(
    width=st.integers(1, 200), height=st.integers(1, 200), shrinkable=st.floats(0.01, 50)
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_no_image_is_made_smaller_than_asked(width, height, shrinkable):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    decoded = augment._decode(jpeg(pixels), width, height, shrinkable)
    factor = max(f for f in (1, 2, 4, 8) if f <= max(1, shrinkable / 2))
    assert decoded.shape == (-(-height // factor), -(-width // factor), 3)
    crop = augment.decode_train(jpeg(pixels), 16, 0, 0, 0)
    assert crop.shape == (16, 16, 3)


def test_files_that_only_pil_reads():
    photo = np.asarray(Image.open(PHOTO))
    for mode, off in (("L", 1.5), ("CMYK", 3.0)):
        file = jpeg(photo, mode)
        got, want = (f(file, 64, 0, 3, 0).astype(int) for f in (augment.decode_train, by_pil))
        assert abs(got - want).mean() < off, mode
    whole = jpeg(photo)
    # Bytes that do not belong there are passed over, as PIL does; a missing end is an error.
    odd = whole[:-2] + b"\0\0\0" + whole[-2:]
    assert augment.decode_train(odd, 64, 0, 0, 0).shape == (64, 64, 3)
    with pytest.raises(OSError, match="truncated"):
        augment.decode_train(whole[: len(whole) // 2], 64, 0, 0, 0)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_window_may_touch_the_edge_of_an_image_of_any_side(factor):
    for side in range(3, 500):
        width = -(-side // factor)
        pixels = np.full((3, width, 3), 100, np.uint8)
        for left in (0, 1, side / 3):
            box = (left * width / side, 0.0, side * width / side, 3.0)
            assert (augment._resized_crop(pixels, box, 2) == 100).all()
