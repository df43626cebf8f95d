"""Writing TFDS data sets: what is in them, and what an interruption leaves."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_images import NOISE, NoiseExamples, encoded, write_noise

from mobilevitv2_jax.data import array_record
from mobilevitv2_jax.errors import DataError


def content(directory):
    """Returns the names of all files, and the examples of "train" in their order.

    Not the bytes of shards: in a record, the order of features is that of a hash table.
    """
    source = tfds.builder_from_directory(directory).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    return sorted(path.name for path in directory.iterdir()), list(source)


def test_tfds_reads_the_examples_of_every_split(tmp_path):
    splits = {"train": NoiseExamples(20), "validation": NoiseExamples(7)}
    directory, _ = write_noise(tmp_path, splits)
    assert directory == tmp_path / "noise/1.0.0"
    builder = tfds.builder_from_directory(directory)
    for split, examples in splits.items():
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        found = sorted(int(example["file_name"]) for example in source)
        assert found == list(range(len(examples)))
        for example in source:
            number = int(example["file_name"])
            assert example["image"] == encoded(number)
            assert example["label"] == number % 5
    assert builder.info.features["label"].names == list("abcde")
    assert "tensorflow" not in sys.modules


def test_a_part_of_a_split_is_a_sample_of_all_of_it(tmp_path):
    directory, _ = write_noise(tmp_path, {"train": NoiseExamples(200)})
    source = tfds.builder_from_directory(directory).as_data_source("train[:25%]")
    numbers = [int(example["file_name"]) for example in source]
    # The mean of 50 of 200 numbers drawn without replacement has a deviation of 7.1; 4 of them.
    assert len(numbers) == 50 and abs(np.mean(numbers) - 99.5) < 28


def test_damaged_and_changed_examples_are_told(tmp_path):
    directory, reports = write_noise(tmp_path, {"train": NoiseExamples(20, corrupt=(4, 9))})
    assert reports["train"].examples == 18
    assert reports["train"].corrupt == ("number 4 is damaged", "number 9 is damaged")
    assert reports["train"].remarks == ("number 3 is odd",)
    written = json.loads((directory / array_record.REPORT).read_text())
    assert written["reports"]["train"]["corrupt"] == list(reports["train"].corrupt)
    assert tfds.builder_from_directory(directory).info.splits["train"].num_examples == 18


def test_the_number_of_shards_follows_from_the_size(tmp_path):
    splits = {"train": NoiseExamples(20, num_bytes=2600), "test": NoiseExamples(3, num_bytes=10**4)}
    directory, reports = write_noise(tmp_path, splits)
    assert len(reports["train"].lengths) == 6 and sum(reports["train"].lengths) == 20
    assert len(reports["test"].lengths) == 3  # never an empty one
    assert (directory / "noise-train.array_record-00005-of-00006").exists()


@dataclasses.dataclass(frozen=True)
class Breaking(NoiseExamples):
    """Cannot be read from the 12th example on that is asked for."""

    def __getitem__(self, index):
        if len(os.listdir(os.environ["BREAKING"])) >= 12:
            raise OSError("the archive is gone")
        open(os.path.join(os.environ["BREAKING"], str(index)), "w").close()
        return super().__getitem__(index)


def test_a_preparation_goes_on_with_the_shards_that_are_missing(tmp_path, monkeypatch):
    whole, _ = write_noise(tmp_path / "whole", {"train": NoiseExamples(20, num_bytes=2500)})
    seen = tmp_path / "seen"
    seen.mkdir()
    monkeypatch.setenv("BREAKING", str(seen))
    with pytest.raises(DataError, match="00003-of-00005: the archive is gone; finished shards"):
        write_noise(tmp_path, {"train": Breaking(20, num_bytes=2500)})
    assert not (tmp_path / "noise/1.0.0").exists()
    progress = []
    directory, _ = write_noise(
        tmp_path, {"train": NoiseExamples(20, num_bytes=2500)}, tell=progress.append
    )
    assert [state.shards for state in progress] == [3, 4, 5]
    assert [state.examples for state in progress] == [12, 16, 20]
    assert [state.written for state in progress] == [0, 4, 8]
    assert content(directory) == content(whole)
    assert not list((tmp_path / "noise").glob("*.*.*.*"))


def test_a_finished_set_is_not_written_again(tmp_path):
    splits = {"train": NoiseExamples(20)}
    directory, reports = write_noise(tmp_path, splits)
    before = content(directory)

    def tell(progress):
        raise AssertionError("nothing is to be done")

    assert write_noise(tmp_path, splits, tell=tell) == (directory, reports)
    assert content(directory) == before


def test_other_examples_do_not_go_into_a_set_that_was_begun(tmp_path):
    def refuse(reports):
        raise DataError("not like this")

    with pytest.raises(DataError, match="not like this"):
        write_noise(tmp_path, {"train": NoiseExamples(20)}, accept=refuse)
    assert not (tmp_path / "noise/1.0.0").exists()
    for splits in ({"train": NoiseExamples(21)}, {"train": NoiseExamples(20, fingerprint="x")}):
        with pytest.raises(DataError, match="incomplete was begun with other data .train: "):
            write_noise(tmp_path, splits)
    write_noise(tmp_path, {"train": NoiseExamples(20)})
    with pytest.raises(DataError, match=r"1.0.0 was begun with other data .train: .*'examples'"):
        write_noise(tmp_path, {"train": NoiseExamples(21)})


def test_a_directory_of_another_origin_is_left_alone(tmp_path):
    (tmp_path / "noise/1.0.0").mkdir(parents=True)
    with pytest.raises(DataError, match="this program did not make it"):
        write_noise(tmp_path, {"train": NoiseExamples(20)})


def test_a_split_without_examples_is_refused(tmp_path):
    with pytest.raises(DataError, match="split train of noise has no examples"):
        write_noise(tmp_path, {"train": NoiseExamples(0)})


def test_too_little_disk_is_told_before_anything_is_written(tmp_path):
    splits = {"train": NoiseExamples(20, num_bytes=10**18)}
    with pytest.raises(DataError, match=r"needs 1020000000.0 GB, and the disk has .* GB free"):
        write_noise(tmp_path, splits, shard_bytes=10**17)
    assert not list(tmp_path.rglob("*.array_record*"))


FULL_DISK = """
import resource, signal, sys
from small_images import NoiseExamples, write_noise
from mobilevitv2_jax.errors import DataError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # of one file, as if the disk were full
try:
    write_noise(sys.argv[1], {"train": NoiseExamples(20)})
except DataError as error:
    sys.exit(str(error))
"""


def test_a_shard_that_cannot_be_written_whole_is_not_kept(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 1
    assert "cannot write noise-train.array_record-00000-of-00002" in done.stderr
    assert "File too large" in done.stderr
    assert not [path for path in tmp_path.rglob("*00002") if path.is_file()]


def test_the_time_that_remains_is_that_of_the_rest_at_the_present_speed():
    progress = array_record.Progress(3, 10, 300, 1000, written=100, seconds=20.0)
    assert progress.remaining == 140.0


WRITER = """
import sys
from small_images import NoiseExamples, write_noise
if __name__ == "__main__":
    def tell(progress):
        print(progress.shards, flush=True)
    splits = {"train": NoiseExamples(2000, num_bytes=20000)}
    write_noise(sys.argv[1], splits, processes=2, tell=tell)
"""


def start_writer(directory, script):
    script.write_text(WRITER)
    return subprocess.Popen(
        [sys.executable, str(script), str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.slow
def test_a_preparation_survives_kill_minus_9_at_any_moment(tmp_path):
    whole, _ = write_noise(tmp_path / "whole", {"train": NoiseExamples(2000, num_bytes=20000)})
    kept = []
    for until in (3, 9, 22):
        process = start_writer(tmp_path, tmp_path / "writer.py")
        for line in process.stdout:
            if int(line) >= until:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert not (tmp_path / "noise/1.0.0").exists()
        kept.append(int(line))
    process = start_writer(tmp_path, tmp_path / "writer.py")
    lines = process.communicate(timeout=300)[0].split()
    assert process.returncode == 0
    assert int(lines[0]) >= kept[-1] and int(lines[-1]) == 40
    assert content(tmp_path / "noise/1.0.0") == content(whole)
    assert sorted(path.name for path in (tmp_path / "noise").iterdir()) == ["1.0.0"]


@pytest.mark.slow
def test_a_second_preparation_of_the_same_set_is_refused_while_one_runs(tmp_path):
    process = start_writer(tmp_path, tmp_path / "writer.py")
    try:
        process.stdout.readline()
        with pytest.raises(DataError, match="another process is preparing"):
            write_noise(tmp_path, {"train": NoiseExamples(2000, num_bytes=20000)})
    finally:
        process.kill()
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.EWOULDBLOCK, "another process is preparing"), (errno.ENOLCK, "1.0.0.lock cannot be")],
)
def test_only_a_lock_that_is_held_is_told_as_another_preparation(code, said, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(array_record.fcntl, "flock", flock)
    with pytest.raises(DataError, match=said):
        write_noise(tmp_path, {"train": NoiseExamples(2)})


def test_the_description_can_be_sent_to_a_process():
    import pickle

    assert pickle.loads(pickle.dumps(NOISE)).features().keys() == {"image", "label", "file_name"}
