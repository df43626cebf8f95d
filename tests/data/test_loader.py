"""The stream of batches: order, resume, processes, workers, padding, broken records."""

import dataclasses
import itertools
import math

import cv2
import numpy as np
import pytest

from mobilevitv2_jax.data.augment import Evaluate, HorizontalFlip, RandomResizedCrop, Train
from mobilevitv2_jax.data.loader import evaluation_batches, evaluation_steps, train_batches
from mobilevitv2_jax.data.sources import ArraySource

RANDOM = Train((RandomResizedCrop(8, (0.3, 1.0), (3 / 4, 4 / 3), "bilinear"), HorizontalFlip(0.5)))
CENTRAL = Evaluate(8, 8, "bilinear")


def noise(count):
    images = np.random.RandomState(0).randint(0, 256, (count, 12, 10, 3)).astype(np.uint8)
    labels = np.arange(count, dtype=np.int32) % 5
    return ArraySource("noise", "train", images, labels, tuple("abcde"))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """JPEG bytes of another source's images; the records `truncated` are cut in half."""

    source: ArraySource
    truncated: tuple[int, ...] = ()

    name, split, class_names = "encoded", "train", tuple("abcde")

    @property
    def fingerprint(self):
        return f"encoded/train/{len(self)}"

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = self.source[index]
        data = cv2.imencode(".jpg", example["image"][..., ::-1])[1].tobytes()
        if index in self.truncated:
            data = data[: len(data) // 2]
        return {**example, "image": data}


def train(source, steps, **options):
    """Returns the first batches of a training stream."""
    options = {"batch_size": 6, "seed": 1, "threads": 0, **options}
    with train_batches(source, RANDOM, **options) as batches:
        return [copied(batch) for batch in itertools.islice(batches, steps)]


def evaluate(source, **options):
    """Returns all batches of an evaluation."""
    options = {"threads": 0, **options}
    with evaluation_batches(source, CENTRAL, **options) as batches:
        return [copied(batch) for batch in batches]


def copied(batch):
    return {key: np.array(value) for key, value in batch.items()}


def concatenated(batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            assert batch[key].dtype == other[key].dtype
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_a_training_batch_has_images_labels_indices_and_flags():
    source = noise(20)
    (batch,) = train(source, 1)
    shapes = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert shapes == {
        "image": ("uint8", (6, 8, 8, 3)),
        "label": ("int32", (6,)),
        "index": ("int64", (6,)),
        "corrupt": ("bool", (6,)),
    }
    np.testing.assert_array_equal(batch["label"], source.labels[batch["index"]])


def test_an_image_travels_with_its_index():
    source = noise(20)
    with train_batches(source, Train((CENTRAL,)), batch_size=6, seed=1, threads=0) as batches:
        batch = next(batches)
    for image, index in zip(batch["image"], batch["index"], strict=True):
        np.testing.assert_array_equal(image, CENTRAL(source[int(index)])["image"])


def test_every_epoch_visits_each_example_once_in_a_new_order():
    indices = concatenated(train(noise(20), 10))["index"].reshape(3, 20)
    np.testing.assert_array_equal(np.sort(indices), [np.arange(20)] * 3)
    assert len({tuple(epoch) for epoch in indices}) == 3


def test_an_example_is_augmented_anew_in_every_epoch():
    batch = concatenated(train(noise(20), 10))
    visits = batch["image"][batch["index"] == 0]
    assert len(visits) == 3
    assert (visits[0] != visits[1]).any() and (visits[1] != visits[2]).any()


def test_the_stream_is_a_function_of_the_seed():
    source = noise(20)
    assert_same(train(source, 8, seed=3), train(source, 8, seed=3))
    first, second = train(source, 1, seed=3), train(source, 1, seed=4)
    assert (first[0]["index"] != second[0]["index"]).any()


@pytest.mark.parametrize("threads", [2, 4])
def test_reading_threads_do_not_change_the_stream(threads):
    source = Encoded(noise(20))
    assert_same(train(source, 9, threads=threads), train(source, 9))
    assert_same(evaluate(source, batch_size=6, threads=threads), evaluate(source, batch_size=6))


@pytest.mark.slow
def test_loader_processes_do_not_change_the_stream():
    source = noise(20)
    assert_same(train(source, 9, workers=2, start_step=2), train(source, 9, start_step=2))
    assert_same(evaluate(source, batch_size=6, workers=2), evaluate(source, batch_size=6))


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_resuming_at_step_k_gives_the_same_batches(step):
    source = noise(20)  # an epoch ends within the fourth batch
    assert_same(train(source, 8 - step, start_step=step), train(source, 8)[step:])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_rows_of_the_global_batch_do_not_depend_on_the_number_of_processes(processes):
    source = noise(23)
    options = {"batch_size": 8, "start_step": 2}
    parts = [
        train(source, 7, process_index=index, process_count=processes, **options)
        for index in range(processes)
    ]
    together = [concatenated(step) for step in zip(*parts, strict=True)]
    assert_same(together, train(source, 7, **options))


@pytest.mark.parametrize("examples", [1, 12, 23, 25])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_evaluation_sees_every_example_exactly_once_on_any_number_of_processes(examples, processes):
    source = noise(examples)
    parts = [
        evaluate(source, batch_size=12, process_index=index, process_count=processes)
        for index in range(processes)
    ]
    assert {len(part) for part in parts} == {evaluation_steps(examples, 12)}
    together = [concatenated(step) for step in zip(*parts, strict=True)]
    assert_same(together, evaluate(source, batch_size=12))
    batch = concatenated(together)
    assert batch["mask"].dtype == np.float32 and batch["mask"].sum() == examples
    np.testing.assert_array_equal(batch["index"][batch["mask"] == 1], np.arange(examples))
    assert (batch["index"][batch["mask"] == 0] == -1).all()
    assert len(batch["mask"]) == math.ceil(examples / 12) * 12


def test_a_training_record_that_cannot_be_decoded_is_replaced_in_its_place():
    whole, broken = Encoded(noise(20)), Encoded(noise(20), truncated=(3, 4, 19))
    expected, batch = concatenated(train(whole, 10)), concatenated(train(broken, 10))
    np.testing.assert_array_equal(batch["index"], expected["index"])
    np.testing.assert_array_equal(batch["corrupt"], np.isin(batch["index"], (3, 4, 19)))
    fine = ~batch["corrupt"]
    np.testing.assert_array_equal(batch["image"][fine], expected["image"][fine])
    neighbour = np.select([batch["index"] == 3, batch["index"] == 4], [5, 5], 0)  # 19 wraps to 0
    np.testing.assert_array_equal(batch["label"][~fine], whole.source.labels[neighbour[~fine]])


def test_a_corrupt_example_and_padding_are_masked_but_only_the_first_is_flagged():
    truncated = (0, 7, 19)  # the last record is the one that padding repeats
    batch = concatenated(evaluate(Encoded(noise(20), truncated), batch_size=8))
    assert len(batch["mask"]) == 24
    np.testing.assert_array_equal(batch["index"][batch["corrupt"]], truncated)
    assert (batch["mask"][batch["corrupt"]] == 0).all()
    assert batch["mask"].sum() + batch["corrupt"].sum() == 20


def test_too_many_broken_records_in_a_row_end_the_run_with_their_name():
    source = Encoded(noise(20), truncated=tuple(range(20)))
    with pytest.raises(ValueError, match=r"record 0 of encoded/train/20 .* any of the 16 after it"):
        evaluate(source, batch_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "multiple of the 4 processes, got 6"),
        ({"batch_size": 0}, "positive multiple of the 1 processes, got 0"),
        ({"process_index": 2, "process_count": 2}, r"process_index must be in \[0, 2\), got 2"),
    ],
)
def test_a_batch_that_cannot_be_shared_out_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train(noise(20), 1, **options)
    with pytest.raises(ValueError, match=message):
        evaluate(noise(20), **{"batch_size": 6, **options})


def test_a_stream_may_be_closed_twice_and_gives_nothing_afterwards():
    batches = train_batches(noise(20), RANDOM, batch_size=4, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
