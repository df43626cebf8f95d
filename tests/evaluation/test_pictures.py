"""Which predictions are shown, and that a picture of them is drawn."""

import numpy as np
import pytest
from PIL import Image

from mobilevitv2_jax.evaluation.classification import Predictions
from mobilevitv2_jax.evaluation.pictures import choose_examples, save_predictions


def predictions(confidences, right):
    """Returns predictions of two classes with these probabilities, all of the class 0."""
    outputs = np.stack([confidences, 1 - np.asarray(confidences)], axis=-1)
    labels = np.where(right, 0, 1)
    return Predictions(np.zeros((len(labels), 8, 8, 3), np.uint8), labels, outputs)


def test_up_to_half_are_mistakes_and_the_surest_come_first():
    found = predictions([0.9, 0.6, 0.8, 0.7, 0.99, 0.95], [False] * 4 + [True] * 2)
    np.testing.assert_array_equal(choose_examples(found, 4), [0, 2, 4, 5])


def test_the_right_ones_are_the_surest_and_the_least_sure():
    found = predictions([0.9, 0.6, 0.8, 0.7, 0.99, 0.95], [True] * 6)
    np.testing.assert_array_equal(choose_examples(found, 4), [4, 5, 3, 1])
    np.testing.assert_array_equal(choose_examples(found, 3), [4, 5, 1])


def test_right_ones_fill_the_room_that_mistakes_leave():
    found = predictions([0.9, 0.6, 0.8, 0.7, 0.99, 0.95], [True] * 5 + [False])
    np.testing.assert_array_equal(choose_examples(found, 4), [5, 4, 0, 1])


def test_equal_probabilities_are_shown_in_their_order():
    found = predictions([0.9] * 4, [False] * 4)
    np.testing.assert_array_equal(choose_examples(found, 4), [0, 1])


def test_fewer_examples_than_places_are_all_shown_once():
    found = predictions([0.9, 0.8, 0.7], [True, False, True])
    assert sorted(choose_examples(found, 32)) == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_a_picture_of_the_promised_size_is_written(tmp_path, count):
    random = np.random.RandomState(0)
    outputs = random.dirichlet(np.ones(10), count)
    images = random.randint(0, 256, (count, 8, 8, 3), np.uint8)
    found = Predictions(images, random.randint(0, 10, count), outputs)
    path = tmp_path / "predictions.png"
    save_predictions(path, found, tuple("0123456789"), "title", columns=4, rows=2)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        # 1.5 x 4 inches by 1.9 x 2 + 0.6, at 100 dots; versions of matplotlib round differently.
        assert picture.width == 600 and picture.height in (439, 440)
        shown = np.asarray(picture.convert("RGB"))
    # Something is drawn below the title if, and only if, there is something to show.
    assert (shown[60:] != 255).any() == (count > 0)


def test_right_and_wrong_differ_in_colour(tmp_path):
    def colours(right):
        path = tmp_path / "picture.png"
        save_predictions(path, predictions([0.9], [right]), ("a", "b"), "", columns=2, rows=1)
        with Image.open(path) as picture:
            return {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}

    green, red = (0x1B, 0x78, 0x37), (0xB2, 0x18, 0x2B)
    assert green in colours(True) and red not in colours(True)
    assert red in colours(False) and green not in colours(False)


def test_a_long_name_stays_above_its_picture(tmp_path):
    names = ("a class whose name is longer than one of ImageNet", "b")
    save_predictions(tmp_path / "p.png", predictions([0.9], [True]), names, "", columns=2, rows=1)
    with Image.open(tmp_path / "p.png") as picture:
        shown = np.asarray(picture.convert("L"))
    assert (shown[:, :150] != 255).any() and (shown[:, 150:] == 255).all()
