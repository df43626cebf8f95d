"""`mobilevitv2 predict`: which pictures it takes, what it prints and what it writes."""

import json
import pathlib
import warnings

import numpy as np
import pytest
from PIL import Image
from processing_cases import picture
from tiny import tiny_flags

from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.errors import ImageError
from mobilevitv2_jax.evaluation import predict
from mobilevitv2_jax.evaluation.predict import Found, Prediction

LABELS = {0: "background", 1: "cat", 2: "dog"}
HEAT = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)


class FakePredictor:
    """Finds two classes in every picture that can be opened."""

    def __init__(self, segments, explain):
        self.segments, self.explain, self.labels = segments, explain, LABELS
        self.seen = []

    def __call__(self, paths, batch_size):
        self.seen = list(paths)
        for path in paths:
            try:
                image = np.asarray(Image.open(path).convert("RGB"))
            except OSError:
                yield ImageError(f"{path} is damaged")
                continue
            classes = np.zeros(image.shape[:2], np.int64)
            classes[:, ::4] = 2
            found = (Found(0, "background", 0.75), Found(2, "dog", 0.25))
            if not self.segments:
                found = (Found(1, "cat", 0.9), Found(2, "dog", 0.06))
            heat = tuple((x, HEAT) for x in found) if self.explain else ()
            yield Prediction(found, image, classes if self.segments else None, heat)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.png", "photos/a.JPG", "photos/notes.txt", "more/a.png", "more/c.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith("txt"):
            path.write_text("no picture")
        else:
            Image.fromarray(picture((20, 30))).save(path)
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """Returns the arguments with which the predictor was loaded."""
    calls = {}

    def load(path, *, top_k, explain, **options):
        calls.update(path=path, top_k=top_k, explain=explain, **options)
        if "warning" in path:
            warnings.warn("x is assumed", stacklevel=2)
        calls["predictor"] = FakePredictor("segmenter" in path, explain)
        return calls["predictor"]

    monkeypatch.setattr(predict, "load_predictor", load)
    return calls


def run(capsys, *argv):
    with pytest.raises(SystemExit) as leaving:
        main(["predict", *argv])
    out, err = capsys.readouterr()
    return leaving.value.code, out, err


def test_files_folders_and_patterns_are_pictures_in_order(folder, fake, capsys):
    status, out, err = run(
        capsys, "photos", "more/a.png", "m*/*", "--pretrained", "classifier", "--top-k=2"
    )
    assert (status, err) == (0, "")
    expected = ["photos/a.JPG", "photos/b.png", "more/a.png", "more/a.png", "more/c.webp"]
    assert fake["predictor"].seen == expected
    assert (fake["top_k"], fake["explain"]) == (2, False) and "checkpoint" not in fake
    for path in expected:
        assert path in out
    assert out.count("cat") == 5 and out.count("90.00%") == 5
    assert {path.name for path in folder.iterdir()} == {"photos", "more"}  # nothing was written


def test_brackets_in_a_name_are_shown(folder, fake, capsys):
    Image.fromarray(picture((20, 30))).save(folder / "a [edited].png")
    with pytest.raises(SystemExit):
        main(["predict", "--pretrained", "x", "a [edited].png"])
    assert "a [edited].png" in capsys.readouterr().out


def test_json_is_one_list_with_a_record_for_each_picture(folder, fake, capsys):
    status, out, _ = run(capsys, "photos/b.png", "--pretrained=classifier", "--json")
    assert status == 0
    assert json.loads(out) == [
        {
            "image": "photos/b.png",
            "classes": [
                {"label": "cat", "index": 1, "probability": 0.9},
                {"label": "dog", "index": 2, "probability": 0.06},
            ],
        }
    ]


def test_a_segmentation_is_drawn_beside_its_picture(folder, fake, capsys):
    status, out, _ = run(capsys, "photos", "more", "--pretrained", "segmenter")
    assert status == 0 and "75.00%" in out and "share of pixels" in out
    written = {path.name for path in (folder / "predictions").iterdir()}
    # Two pictures are called a.
    names = ("a", "b", "a-2", "c")
    assert written == {"predictions.json", *(f"{name}.overlay.png" for name in names)}
    assert "predictions/a-2.overlay.png" in out
    records = json.loads((folder / "predictions" / "predictions.json").read_text())
    assert [record["overlay"] for record in records][2] == "predictions/a-2.overlay.png"
    drawn = np.asarray(Image.open(folder / "predictions" / "a.overlay.png").convert("RGB"))
    # VOC's colour of class 2 (0, 128, 0) in the legend and over the picture.
    assert (drawn == (0, 128, 0)).all(-1).sum() > 50
    assert drawn.shape[1] > drawn.shape[0]


def test_an_explanation_is_a_picture_of_each_class_but_the_background(folder, fake, capsys):
    status, out, _ = run(
        capsys, "photos/b.png", "--pretrained=segmenter", "--explain", "--save", "out"
    )
    assert status == 0 and "out/b.explanation.png" in out
    places = ("b.explanation.png", "b.overlay.png", "predictions.json")
    assert tuple(sorted(path.name for path in (folder / "out").iterdir())) == places
    width = Image.open(folder / "out" / "b.explanation.png").width
    status, *_ = run(capsys, "photos/b.png", "--pretrained=classifier", "--explain")
    assert status == 0 and not (folder / "predictions" / "b.overlay.png").exists()
    wider = Image.open(folder / "predictions" / "b.explanation.png").width
    assert wider > 1.3 * width  # two classes, of which none is the background


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_predicted(folder, fake, capsys):
    (folder / "photos" / "broken.png").write_bytes(b"?")
    status, out, err = run(capsys, "photos", "--pretrained", "classifier", "--json")
    assert status == 1 and err == "error: photos/broken.png is damaged\n"
    records = {record["image"]: record for record in json.loads(out)}
    assert records["photos/broken.png"]["error"] == "photos/broken.png is damaged"
    assert len(records) == 3 and "classes" in records["photos/b.png"]


def test_the_checkpoint_of_a_run_is_chosen_and_what_is_assumed_is_told(folder, fake, capsys):
    status, _, err = run(capsys, "photos/b.png", "--pretrained", "warning", "--best")
    assert (status, fake["checkpoint"], err) == (0, "best", "note: x is assumed\n")
    run(capsys, "photos/b.png", "--pretrained", "run", "--step=30", "--batch-size=2")
    assert fake["checkpoint"] == 30


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "name a picture"),
        ("photos/b.png", "--pretrained is required"),
        ("photos/nowhere.png --pretrained x", "photos/nowhere.png does not exist"),
        ("empty --pretrained x", "empty holds no picture"),
        ("no*.png --pretrained x", "nothing is named like no*.png"),
        ("photos --pretrained x --top-k=0", "--top-k must be at least 1, got 0"),
        ("photos --pretrained x --batch-size=0", "--batch-size must be at least 1, got 0"),
        ("photos --pretrained x --best --step=3", "exclude each other"),
        ("photos --pretraind x", "did you mean 'pretrained'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(folder, fake, capsys, line, said):
    (folder / "empty").mkdir()
    status, out, err = run(capsys, *line.split())
    assert (status, out) == (2, "") and said in err and not fake


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("digits", {}),  # its compiled step is that of other tests
        (
            "digits_segmentation",
            {
                "schedule.total": "1 steps",
                "data.batch_size": 8,
                "eval.batch_size": 48,
                "model.aspp_out_channels": 16,
                "model.depthwise": "convolution",
            },
        ),
    ],
)
def test_a_run_predicts_straight_after_training(tmp_path, monkeypatch, capsys, config, changes):
    path = pathlib.Path(__file__).parents[2] / "configs" / f"{config}.py"
    with pytest.raises(SystemExit) as leaving:
        main(
            [
                "train",
                "--config",
                str(path),
                "--workdir",
                str(tmp_path / "run"),
                *tiny_flags(changes),
            ]
        )
    assert leaving.value.code == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for name, size in (("a.png", (64, 64)), ("b.png", (50, 90))):
        Image.fromarray(picture(size)).save(name)
    status, out, err = run(
        capsys, "a.png", "b.png", "--pretrained", "run", "--explain", "--json", "--top-k=3"
    )
    assert (status, err) == (0, "")
    segments = config == "digits_segmentation"
    for record, size in zip(json.loads(out), ((64, 64), (50, 90)), strict=True):
        assert Image.open(record["explanation"]).width > 100
        labels = {found["label"] for found in record["classes"]}
        if segments:
            assert Image.open(record["overlay"]).height > 100
            shares = [found["share"] * size[0] * size[1] for found in record["classes"]]
            assert sum(shares) == pytest.approx(size[0] * size[1])
            assert labels <= {"background", *"0123456789"}
        else:
            assert len(labels) == 3 and labels <= set("0123456789")
            assert sum(found["probability"] for found in record["classes"]) <= 1 + 1e-6
