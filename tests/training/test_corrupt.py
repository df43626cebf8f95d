"""Records that cannot be decoded: named, counted, and the limit at which a run ends."""

import numpy as np
import pytest
from small_images import encoded, make_folders
from tiny import tiny_config, use_small_model

from mobilevitv2_jax.data.sources import load_source
from mobilevitv2_jax.errors import DataError
from mobilevitv2_jax.training import loop
from mobilevitv2_jax.training.corrupt import CorruptRecords
from mobilevitv2_jax.training.logging import read_metrics


@pytest.fixture
def folder(tmp_path):
    """Returns 16 images, of which a/1.jpg, a/2.jpg and b/0.jpg (1, 2 and 8) are damaged."""
    make_folders(tmp_path / "pets", {"train/a": 8, "train/b": 8, "val/a": 8, "val/b": 8})
    for name in ("a/1.jpg", "a/2.jpg", "b/0.jpg"):
        (tmp_path / "pets/train" / name).write_bytes(encoded(0)[:150])
    return tmp_path / "pets"


def batch(indices, corrupt):
    return {"index": np.array(indices), "corrupt": np.isin(indices, corrupt)}


def test_each_record_is_named_once_and_counted_once(folder):
    said = []
    records = CorruptRecords(load_source("folder", "train", str(folder)), 3, said.append)
    records.add(batch([0, 1, 3], []))
    assert records.settle() == 0 and said == []
    records.add(batch([8, 1, 3], [1, 8]))
    records.add(batch([1, 4], [1]))
    assert records.settle() == 2
    assert said[0].startswith("2 records of the training data could not be decoded")
    for index, name in ((1, "a/1.jpg"), (8, "b/0.jpg")):
        assert f"record {index} of train/train/16-" in said[0]
        assert f"{folder}/train/{name}): cannot decode 150 bytes" in said[0]
    assert records.settle() == 2 and len(said) == 1
    records.add(batch([2], [2]))
    assert records.settle() == 3
    assert "new: record 2 of" in said[1] and "a/1.jpg" not in said[1]


def test_more_than_the_limit_end_the_run_at_once(folder):
    records = CorruptRecords(load_source("folder", "train", str(folder)), 2, print)
    records.add(batch([1, 2, 3], [1, 2]))
    with pytest.raises(DataError, match=r"3 records .* config.data.max_corrupt is 2: record 1 of"):
        records.add(batch([8], [8]))


def test_only_so_many_are_named(folder):
    said = []
    records = CorruptRecords(load_source("folder", "train", str(folder)), 16, said.append)
    records.add(batch(range(16), range(16)))
    assert records.settle() == 16
    assert said[0].count("record ") == 10 and said[0].endswith("; ...")


def config(folder, **changes):
    keys = {
        "data.source": "folder",
        "data.directory": str(folder),
        "data.eval_split": "val",
        "data.batch_size": 8,
        "eval.batch_size": 8,
        "schedule.total": "3 steps",
    }
    return tiny_config({**keys, **changes})


@pytest.mark.slow
def test_a_run_names_damaged_images_and_writes_their_number(folder, tmp_path, capsys, monkeypatch):
    use_small_model(monkeypatch)
    (folder / "val/a/3.jpg").write_bytes(b"")
    assert loop.train(config(folder), tmp_path / "run", "python train.py") == 0
    said = capsys.readouterr().out
    assert "loading in this process (config.data.workers=0)" in said
    # 3 steps of 8 are one and a half epochs of 16: each damaged image is met.
    assert "3 records of the training data could not be decoded" in said
    assert "a/1.jpg" in said and "b/0.jpg" in said
    assert "1 could not be decoded" in said  # of the evaluation, where it counts as not evaluated
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [line["train/corrupt"] for line in lines if "train/corrupt" in line][-1] == 3


@pytest.mark.slow
def test_a_run_on_a_broken_set_ends_before_it_has_learnt_from_it(folder, tmp_path, monkeypatch):
    use_small_model(monkeypatch)
    with pytest.raises(DataError, match="config.data.max_corrupt is 1"):
        loop.train(config(folder, **{"data.max_corrupt": 1}), tmp_path / "run", "python train.py")
