from typing import Any

import jax
import numpy as np
import pytest

from configs import digits
from urnet_jax.data import augment
from urnet_jax.data.sources import open_split
from urnet_jax.errors import UserError

PADDING = 2


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
    mean, std = augment.normalization("cifar10")
    got = jax.jit(lambda images: augment.normalize(images, mean, std))(pixels)
    assert got.dtype == np.float32
    want = [-0.485 / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(got.ravel(), want, rtol=1e-6)


def test_digits_are_normalized_to_mean_0_and_deviation_1():
    pixels = np.asarray(augment.normalize(train_images(), *augment.normalization("digits")))
    assert abs(pixels.mean()) < 1e-3 and abs(pixels.std() - 1) < 1e-3


def test_own_data_is_normalized_as_imagenet_is():
    assert augment.normalization("flowers") == augment.normalization("imagenet2012")
