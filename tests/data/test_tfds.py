"""Reading TFDS data sets by index."""

import dataclasses
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from small_images import NoiseExamples, encoded, write_noise

from mobilevitv2_jax.data.augment import Evaluate
from mobilevitv2_jax.data.image import CorruptError
from mobilevitv2_jax.data.loader import evaluation_batches
from mobilevitv2_jax.data.sources import load_source
from mobilevitv2_jax.errors import DataError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Returns where a set of noise is, in three shards and one."""
    data_dir = tmp_path_factory.mktemp("data")
    splits = {"train": NoiseExamples(20, num_bytes=1300), "validation": NoiseExamples(6)}
    write_noise(data_dir, splits)
    return data_dir


def test_a_source_gives_encoded_images_and_their_classes(data_dir):
    source = load_source("tfds", "train", str(data_dir))
    assert len(source) == 20 and source.class_names == tuple("abcde")
    assert source.fingerprint == "noise/1.0.0/train/20"
    images = {encoded(number): number % 5 for number in range(20)}
    found = {source[index]["image"]: int(source[index]["label"]) for index in range(20)}
    assert found == images
    assert source[0]["label"].dtype == np.int32


@pytest.mark.parametrize("below", ["", "noise", "noise/1.0.0"])
def test_the_set_is_found_in_the_directory_or_below(data_dir, below):
    assert len(load_source("tfds", "validation", str(data_dir / below))) == 6


def test_a_part_of_a_split_is_read_as_tfds_writes_it(data_dir):
    parts = [load_source("tfds", split, str(data_dir)) for split in ("train[:25%]", "train[25%:]")]
    assert [len(part) for part in parts] == [5, 15]
    whole = load_source("tfds", "train", str(data_dir))
    images = [part[index]["image"] for part in parts for index in range(len(part))]
    assert images == [whole[index]["image"] for index in range(20)]


def test_a_source_is_cheap_to_send_to_a_worker(data_dir):
    source = load_source("tfds", "train", str(data_dir))
    data = pickle.dumps(source)
    assert len(data) < 26_000  # what TFDS's own weighs with the 1,000 classes of ImageNet
    assert pickle.loads(data)[3]["image"] == source[3]["image"]


def test_several_directories_are_read_as_one(data_dir, tmp_path):
    write_noise(tmp_path, {"train": NoiseExamples(9)})
    source = load_source("tfds", "train", f"{data_dir}, {tmp_path}")
    assert len(source) == 29
    assert source.fingerprint == "noise/1.0.0/train/20+noise/1.0.0/train/9"
    other = load_source("tfds", "train", str(tmp_path))
    assert source[20]["image"] == other[0]["image"] and source[28]["image"] == other[8]["image"]


def test_directories_with_other_classes_are_not_joined(data_dir, tmp_path):
    from small_images import make_folders

    make_folders(tmp_path, {"one/cat": 2, "two/dog": 2})
    with pytest.raises(DataError, match="must have the classes of one/train/1-"):
        load_source("folder", "train", f"{tmp_path / 'one'},{tmp_path / 'two'}")


def test_what_is_missing_is_told(data_dir, tmp_path):
    with pytest.raises(DataError, match="has no split 'test'; it has train, validation"):
        load_source("tfds", "test", str(data_dir))
    for nothing in ("", str(tmp_path)):
        with pytest.raises(DataError, match="must be a TFDS data set, with a dataset_info.json"):
            load_source("tfds", "train", nothing)
    write_noise(tmp_path / "a", {"train": NoiseExamples(9)})
    write_noise(tmp_path / "b", {"train": NoiseExamples(9)})
    with pytest.raises(DataError, match="must be one of .*/a/noise/1.0.0, .*/b/noise/1.0.0"):
        load_source("tfds", "train", str(tmp_path))
    (tmp_path / "a/noise/1.0.0/noise-train.array_record-00000-of-00002").unlink()
    with pytest.raises(DataError, match="1 of 2 shards are missing, such as .*00000-of-00002"):
        load_source("tfds", "train", str(tmp_path / "a"))


def test_an_unfinished_set_is_not_read(tmp_path):
    directory, _ = write_noise(tmp_path, {"train": NoiseExamples(9)})
    unfinished = directory.rename(directory.with_name("1.0.0.incomplete"))
    for place in (tmp_path, unfinished):
        with pytest.raises(DataError, match="must be a TFDS data set"):
            load_source("tfds", "train", str(place))


def test_a_record_with_a_flipped_bit_is_corrupt_and_counted_by_the_evaluation(tmp_path):
    directory, _ = write_noise(tmp_path, {"train": NoiseExamples(12)}, shard_bytes=10**6)
    shard = directory / "noise-train.array_record-00000-of-00001"
    data = bytearray(shard.read_bytes())
    data[data.index(encoded(3)) + 100] ^= 1
    shard.write_bytes(data)
    source = load_source("tfds", "train", str(tmp_path))
    damaged = []
    for index in range(12):
        try:
            source[index]
        except CorruptError as error:
            damaged.append(index)
            assert f"cannot read record {index} of noise/1.0.0/train" in str(error)
    assert len(damaged) == 1
    with evaluation_batches(source, Evaluate(8, 8, "bilinear"), batch_size=12) as batches:
        batch = next(batches)
    np.testing.assert_array_equal(np.flatnonzero(batch["corrupt"]), damaged)


def test_a_split_without_labels_is_refused_by_name_when_it_is_loaded(tmp_path):
    class Unlabelled(NoiseExamples):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return dataclasses.replace(record, values={**record.values, "label": -1})

    write_noise(tmp_path, {"test": Unlabelled(8)})
    source = load_source("tfds", "test", str(tmp_path))
    with (
        pytest.raises(
            DataError, match=r"noise/1.0.0/test/8 has the label -1, and its classes are 0"
        ),
        evaluation_batches(source, Evaluate(8, 8, "bilinear"), batch_size=4) as batches,
    ):
        next(batches)


FEW_FILES = """
import resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
from mobilevitv2_jax.data.sources import load_source
source = load_source("tfds", "train", sys.argv[1])
for index in range(len(source)):
    source[index]
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""


def test_more_shards_than_files_may_be_open_are_read_without_tensorflow_and_jax(tmp_path):
    write_noise(tmp_path, {"train": NoiseExamples(60)}, shard_bytes=15)
    assert len(list(tmp_path.rglob("*-of-00060"))) == 60
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", FEW_FILES, str(tmp_path)], check=True, env=env)
