"""TFRecord data sets, as TFDS prepares them by default, read by index and without TensorFlow."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_images import NOISE, NoiseExamples, encoded
from tensorboardX.record_writer import RecordWriter

from mobilevitv2_jax.data.image import CorruptError
from mobilevitv2_jax.data.sources import load_source
from mobilevitv2_jax.data.tfrecord import find_records
from mobilevitv2_jax.errors import DataError

LENGTHS = (7, 5, 8)  # records in each shard


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Keeps indices in a directory of the test's own."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    return directory


@pytest.fixture
def noise_set(tmp_path):
    """Returns a set of 20 examples in three files, written by TensorBoardX's writer."""
    directory = tmp_path / "data/noise/1.0.0"
    directory.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        dataset_name="noise", data_dir=directory, split="train", filetype_suffix="tfrecord"
    )
    features = NOISE.features()
    examples, number = NoiseExamples(20), 0
    for shard, length in enumerate(LENGTHS):
        writer = RecordWriter(str(directory / f"noise-train.tfrecord-{shard:05d}-of-00003"))
        for _ in range(length):
            values = dict(examples[number].values)
            writer.write(features.serialize_example(features.encode_example(values)))
            number += 1
        writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=[tfds.core.SplitInfo("train", list(LENGTHS), 0, template)],
        filename_template=template.replace(split=None),
        check_data=False,
    )
    return directory


def load(directory, split="train"):
    return load_source("tfds", split, str(directory))


def test_every_record_is_read_by_its_index(noise_set):
    source = load(noise_set)
    assert len(source) == 20 and source.class_names == tuple("abcde")
    assert source.fingerprint == "noise/1.0.0/train/20"
    for index in (19, 0, 11, 7, 6, 12, 3):  # in any order, at the ends of files too
        assert source[index]["image"] == encoded(index)
        assert source[index]["label"] == index % 5


def test_a_part_of_a_split_begins_and_ends_within_files(noise_set):
    source = load(noise_set, "train[5:14]")
    assert [source[index]["image"] for index in range(9)] == [encoded(n) for n in range(5, 14)]


def test_a_source_can_be_sent_to_a_worker(noise_set):
    source = pickle.loads(pickle.dumps(load(noise_set)))
    assert source[12]["image"] == encoded(12)


def test_the_index_is_kept_outside_a_read_only_directory_and_used_again(noise_set, cache, capsys):
    for path in (*noise_set.iterdir(), noise_set):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(os.listdir(noise_set))
    load(noise_set)
    assert (
        "looking for the records in 3 files of noise/1.0.0/train, once" in capsys.readouterr().err
    )
    kept = list((cache / "mobilevitv2_jax/tfrecord").iterdir())
    assert len(kept) == 1 and sorted(os.listdir(noise_set)) == before
    assert load(noise_set)[12]["image"] == encoded(12)
    assert capsys.readouterr().err == ""
    noise_set.chmod(0o755)


def test_the_index_is_made_anew_when_a_file_has_changed(noise_set, capsys):
    load(noise_set)
    os.utime(noise_set / "noise-train.tfrecord-00001-of-00003", ns=(1, 1))
    capsys.readouterr()
    load(noise_set)
    assert "looking for the records" in capsys.readouterr().err


def test_without_a_place_for_the_index_it_is_made_each_time(noise_set, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no/such/place")
    assert load(noise_set)[12]["image"] == encoded(12)
    assert "cannot keep the index in /proc/no/such/place" in capsys.readouterr().err


@pytest.mark.parametrize("place", [0, 9, 40, -1])
def test_a_flipped_bit_of_a_record_makes_it_corrupt(noise_set, place):
    source = load(noise_set)  # the index is that of the whole file: the damage comes later
    shard = noise_set / "noise-train.tfrecord-00001-of-00003"
    ends = find_records(str(shard))
    data = bytearray(shard.read_bytes())
    data[ends[2] + place if place >= 0 else ends[3] - 1] ^= 4
    shard.write_bytes(data)
    with pytest.raises(
        CorruptError, match=r"record 9 of noise/1.0.0/train is damaged: its checksum"
    ):
        source[9]
    assert source[8]["image"] == encoded(8) and source[10]["image"] == encoded(10)


@pytest.mark.parametrize("cut", [1, 4, 16, 200])
def test_a_file_that_is_cut_off_is_refused(noise_set, cut):
    shard = noise_set / "noise-train.tfrecord-00002-of-00003"
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(DataError, match="00002-of-00003 is cut off: it has .* bytes"):
        load(noise_set)


def test_a_file_that_lacks_whole_records_or_is_none_of_its_kind_is_refused(noise_set):
    shard = noise_set / "noise-train.tfrecord-00002-of-00003"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: find_records(str(shard))[-2]])
    with pytest.raises(DataError, match="has 7 records, and its data set says 8: copy it again"):
        load(noise_set)
    shard.write_bytes(b"something else" * 10)
    with pytest.raises(DataError, match="is no TFRecord file, or damaged: no record at 0"):
        load(noise_set)
    shard.unlink()
    with pytest.raises(DataError, match="1 of 3 shards are missing"):
        load(noise_set)


def test_a_length_with_a_wrong_checksum_is_not_followed(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(struct.pack("<QI", 0, 0) + b"\0" * 4)
    with pytest.raises(DataError, match="no record at 0"):
        find_records(str(path))


def test_the_checksum_is_that_of_the_standard(tmp_path):
    writer = RecordWriter(str(tmp_path / "x.tfrecord"))
    writer.write(b"123456789")
    writer.close()
    data = (tmp_path / "x.tfrecord").read_bytes()
    # RFC 3720's check value of CRC-32C, 0xE3069283, in TFRecord's masked form.
    masked = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert struct.unpack("<I", data[-4:])[0] == masked
    np.testing.assert_array_equal(find_records(str(tmp_path / "x.tfrecord")), [0, 25])


def test_other_file_formats_are_refused_with_those_that_are_read(noise_set):
    file = noise_set / "dataset_info.json"
    info = json.loads(file.read_text())
    info["fileFormat"] = "riegeli"
    info["splits"][0]["filepathTemplate"] = "{DATASET}-{SPLIT}.tfrecord-{SHARD_X_OF_Y}"
    file.write_text(json.dumps(info))
    with pytest.raises(DataError, match="must be in ArrayRecord or TFRecord files, got riegeli"):
        load(noise_set)
