"""Generated data: the same every time, in the shape and with the classes that are asked for."""

import pickle

import numpy as np
import pytest
from tiny import tiny_config

from mobilevitv2_jax.config import REPOSITORY, ConfigError, load
from mobilevitv2_jax.data.loader import evaluation_batches, train_batches
from mobilevitv2_jax.data.sources import load_source
from mobilevitv2_jax.training.experiment import open_source
from mobilevitv2_jax.training.task import find_task
from mobilevitv2_jax.validation import validate


def test_an_example_is_noise_of_the_stored_size_with_one_of_a_thousand_classes():
    source = load_source("synthetic", "train")
    example = source[1_281_166]
    assert example["image"].shape == (375, 500, 3) and example["image"].dtype == np.uint8
    # 562,500 uniform bytes: the mean is within 5 standard errors (0.5) of 127.5.
    assert abs(example["image"].mean() - 127.5) < 0.5
    assert example["label"].dtype == np.int32 and 0 <= example["label"] < 1000
    assert len(source) == 1_281_167 and len(source.class_names) == 1000
    assert source.fingerprint == "synthetic-1000-classes/train/1281167"


def test_a_map_has_every_class_and_pixels_without_one():
    source = load_source("synthetic", "val", num_labels=7, label_is_map=True)
    label = source[3]["label"]
    assert label.shape == (375, 500) and label.dtype == np.uint8
    assert set(np.unique(label)) == {*range(7), 255}
    assert source.fingerprint == "synthetic-7-maps/val/1000"
    assert len(load_source("synthetic", "val", label_is_map=True).class_names) == 21


def test_examples_depend_on_split_and_index_alone():
    first, again = (load_source("synthetic", "train")[5] for _ in range(2))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert first["label"] == again["label"]
    for other in (load_source("synthetic", "train")[6], load_source("synthetic", "test")[5]):
        assert (first["image"] != other["image"]).mean() > 0.9


def test_a_map_of_more_classes_than_a_byte_tells_apart_is_refused():
    config = tiny_config({"task": "segmentation", "data.source": "synthetic"})
    with config.unlocked():
        config.model.num_labels = 256
    with pytest.raises(ConfigError, match="num_labels must be at most 255 .* got 256"):
        open_source(config, "train")


@pytest.mark.parametrize("path", sorted(p.name for p in REPOSITORY.glob("configs/*.py")))
def test_every_config_runs_on_it_in_its_own_sizes(path):
    config = load(f"configs/{path}")
    config.data.source = "synthetic"
    validate(config)
    task, size = find_task(config), config.data.image_size
    train, held_out = (open_source(config, s) for s in ("train", config.data.eval_split))
    classes = config.model.num_labels or (21 if task.label_is_map else 1000)
    assert len(train.class_names) == len(held_out.class_names) == classes
    with train_batches(train, task.train_transform(config), batch_size=2, seed=0) as batches:
        batch = next(batches)
    assert batch["image"].shape == (2, size, size, 3)
    assert batch["label"].shape == ((2, size, size) if task.label_is_map else (2,))
    with evaluation_batches(held_out, task.evaluation_transform(config), batch_size=2) as batches:
        assert next(batches)["image"].shape == (2, config.eval.crop, config.eval.crop, 3)


def test_a_worker_receives_a_name_and_no_data():
    assert len(pickle.dumps(load_source("synthetic", "train"))) < 300
