"""From VOCdevkit to mIoU: direct reading, preparation, training, evaluation, pictures.

The kit is generated: palette PNGs with white borders, images of 500 x 375, 333 x 500, … pixels. The
model is a small one, for this is about everything around it.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from small_voc import add_sbd, make_voc
from tiny import use_small_model

from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.data.voc import CLASSES

pytestmark = pytest.mark.slow

REPOSITORY = pathlib.Path(__file__).parents[2]

FLAGS = {
    "model.dtype": "float32",
    "data.batch_size": 8,
    "data.image_size": 64,
    "augment.short_side": (48, 96),
    "augment.long_side": 128,
    "eval.resize": 64,
    "eval.crop": 64,
    "eval.batch_size": 2,
    "eval.every": "60 steps",
    "checkpoint.every": "60 steps",
    "schedule.total": "60 steps",
    "schedule.warmup": "0 steps",
    "schedule.learning_rate": 2e-2,
    "ema.momentum": 0.1,
}


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A kit of 12 images to train on, 4 more by SBD, and 5 held out, in 4 shapes."""
    directory = tmp_path_factory.mktemp("kit")
    make_voc(directory, train=12, val=5)
    add_sbd(directory, [f"2008_{number:06d}" for number in range(4)])
    return directory


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, arguments)))
    return caught.value.code


def flags(directory):
    given = [f"--config.{key}={value}" for key, value in FLAGS.items()]
    return ["--config=configs/voc.py", f"--config.data.directory={directory}", *given]


def results(workdir):
    return json.loads((workdir / "eval.json").read_text())["60"]


@pytest.fixture(scope="module")
def trained(kit):
    """A run on the kit as it is distributed, evaluated with pictures."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_model(patch)
        workdir = kit / "run"
        # As many loaders as the cores allow, on few cores none: the protocol does so, too.
        assert run("train", *flags(kit), "--config.data.workers=-1", "--workdir", workdir) == 0
        assert run("eval", "--workdir", workdir, "--save-pictures") == 0
    return workdir


def test_a_run_on_the_kit_learns_and_is_judged_by_the_protocol_beside_the_quick_number(trained):
    """A model of a few thousand parameters tells discs from squares by their colour."""
    found = results(trained)
    assert found["eval_ema/miou"] > 0.5 and found["eval_ema/pixel_accuracy"] > 0.9
    ious = [value for name, value in found.items() if name.startswith("eval_ema/iou/")]
    assert found["eval_ema/miou"] == pytest.approx(np.mean(ious), rel=1e-12)
    assert found["eval_ema_squashed/miou"] != found["eval_ema/miou"]
    assert {name.split("/")[0] for name in found} == {
        "eval",
        "eval_ema",
        "eval_squashed",
        "eval_ema_squashed",
    }


def test_the_pictures_are_those_of_the_held_out_images_with_the_truth_of_the_kit(kit, trained):
    for name in ("worst", "best"):
        assert (trained / "pictures" / f"{name}.png").exists()
        truths = sorted((trained / "pictures" / name).glob("*_truth.png"))
        assert len(truths) == 5
        for truth in truths:
            index = int(truth.name.split("_")[1])
            folder = kit / "VOCdevkit/VOC2012"
            listed = (folder / "ImageSets/Segmentation/val.txt").read_text().split()
            original = folder / "SegmentationClass" / f"{listed[index]}.png"
            with Image.open(truth) as shown, Image.open(original) as stored:
                np.testing.assert_array_equal(np.asarray(shown), np.asarray(stored))
                assert shown.getpalette()[:63] == stored.getpalette()[:63]
    first, last = (
        sorted((trained / "pictures" / name).glob("*_image.png"))[0].name
        for name in ("worst", "best")
    )
    assert first != last


def test_two_processes_find_what_one_does(trained, monkeypatch):
    """Tolerance: 1e-4, for a pixel whose two best scores are equal but for rounding."""
    alone = results(trained)
    command = [sys.executable, "tests/small_cli.py", "eval", "--workdir", str(trained)]
    launcher = [sys.executable, "launch/local.py", "-n", "2", "--"]
    done = subprocess.run(
        [*launcher, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    together = results(trained)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        assert together[name] == pytest.approx(value, abs=1e-4)


def test_a_prepared_set_trains_and_is_judged_as_the_kit_is(kit, trained, monkeypatch):
    use_small_model(monkeypatch)
    out = kit / "out"
    assert run("prepare", "voc", "--source", kit, "--out", out, "--allow-partial") == 0
    workdir = kit / "prepared"
    assert run("train", *flags(out), "--workdir", workdir) == 0
    assert run("eval", "--workdir", workdir) == 0
    assert results(workdir)["eval_ema/miou"] > 0.5
    for directory in (trained, workdir):
        labels = json.loads((directory / "model" / "config.json").read_text())["id2label"]
        assert {int(index): name for index, name in labels.items()} == dict(enumerate(CLASSES))


def test_more_shapes_than_may_be_compiled_are_refused_before_anything_is(
    trained, monkeypatch, capsys
):
    use_small_model(monkeypatch)
    assert run("eval", "--workdir", trained, "--max-shapes=3") == 2
    assert "have 4 shapes, each of which is a program" in capsys.readouterr().err


def test_several_views_have_a_name_of_their_own(trained, monkeypatch):
    use_small_model(monkeypatch)
    alone = results(trained)
    assert run("eval", "--workdir", trained, "--scales=0.75,1", "--flip") == 0
    found = results(trained)
    assert found["eval_ema/miou"] == alone["eval_ema/miou"]
    assert 0.5 < found["eval_ema_multiscale/miou"] <= 1


def test_the_quick_evaluation_gives_the_training_s_figures_to_the_last_digit(trained, monkeypatch):
    use_small_model(monkeypatch)
    alone = results(trained)
    path = trained / "eval.json"
    path.unlink()
    assert run("eval", "--workdir", trained, "--squashed") == 0
    found = results(trained)
    path.write_text(json.dumps({"60": alone}))
    assert found == {name: alone[name] for name in alone if "_squashed/" in name}
    assert found
