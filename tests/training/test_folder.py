"""`configs/folder.py`: from a folder of images to a run."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from small_images import make_folders
from tiny import tiny_flags, use_small_model

from mobilevitv2_jax import config as configs
from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.validation import validate


def test_the_argument_is_the_folder():
    config = configs.load("configs/folder.py", "/my/images,width=0.5,resolution=128")
    validate(config)
    assert config.data.directory == "/my/images"
    assert config.model.width_multiplier == 0.5
    assert (config.data.image_size, config.eval.crop, config.eval.resize) == (128, 128, 144)


@pytest.mark.slow
def test_one_line_trains_on_a_folder_and_tells_of_each_class(tmp_path, monkeypatch, capsys):
    use_small_model(monkeypatch)
    images, run = tmp_path / "my images", tmp_path / "run"
    make_folders(images, {"cat": 10, "dog": 20, "red fox": 5})
    flags = [flag for flag in tiny_flags() if not flag.startswith("--config.data.source")]
    with pytest.raises(SystemExit) as leaving:
        main(["train", "--config", f"configs/folder.py:{images}", "--workdir", str(run), *flags])
    assert leaving.value.code == 0
    out = capsys.readouterr().out
    assert "3 classes" in out and "28 images to train on, 7 held out" in out
    assert "confusion.png" in out

    saved = json.loads((run / "model" / "config.json").read_text())
    assert saved["id2label"] == {"0": "cat", "1": "dog", "2": "red fox"}
    header, *rows = csv.reader((run / "confusion.csv").read_text().splitlines())
    assert header == ["class", "accuracy", "cat", "dog", "red fox"]
    counts = np.array([[int(cell) for cell in row[2:]] for row in rows])
    assert counts.sum(1).tolist() == [2, 4, 1]  # a fifth of each class
    results = json.loads((run / "eval.json").read_text())["6"]
    assert np.trace(counts) / 7 == pytest.approx(results["eval_ema/top1"])
    with Image.open(run / "confusion.png") as picture:
        assert picture.format == "PNG"


def test_a_folder_that_is_not_there_is_told_in_a_paragraph(tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["train", "--config=configs/folder.py", "--workdir", str(tmp_path / "run")])
    assert leaving.value.code != 0
    error = capsys.readouterr().err
    assert "images must be in a folder for each class" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
