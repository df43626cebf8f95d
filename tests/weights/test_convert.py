"""Conversions: the function is preserved, or nothing is written and the rule is named."""

import sys
import types
import warnings

import numpy as np
import orbax.checkpoint as ocp
import pytest
from reference_weights import reference_weights, shapes_of

import mobilevitv2_jax as mv
from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.weights import formats, images, tensors
from mobilevitv2_jax.weights.convert import convert

SMALL = {"width_multiplier": 0.25, "n_attn_blocks": (1, 1, 1), "base_attn_unit_dims": (16, 24, 32)}


def make(place, rules, cls=mv.MobileViTV2ForImageClassification, **fields):
    config = mv.MobileViTV2Config(**{"num_labels": 3, **fields})
    model = cls(config, rngs=Blank())
    mv.weights.load_state_dict(model, reference_weights(shapes_of(mv.weights.state_dict(model))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(place, processor=rules)
    return model


def test_a_tree_for_orbax_holds_parameters_and_statistics_by_our_paths(tmp_path):
    model = make(tmp_path / "hf", images.rules(72, 64, "bicubic"), **SMALL)
    report = convert(tmp_path / "hf", tmp_path / "tree", "orbax")
    assert "MobileViTV2ForImageClassification, width 0.25, 3 classes" in report.rows["model"]
    tree = ocp.StandardCheckpointer().restore((tmp_path / "tree" / "weights").resolve())
    parameters, statistics = functional.arrays(model)
    assert tree.keys() == {"parameters", "statistics"}
    for name, expected in (("parameters", parameters), ("statistics", statistics)):
        assert tree[name].keys() == expected.keys()
        for path, x in expected.items():
            np.testing.assert_array_equal(tree[name][path], x)
    assert mv.MobileViTV2Config.from_pretrained(tmp_path / "tree") == model.config
    assert mv.MobileViTImageProcessor.from_pretrained(tmp_path / "tree").resample == 3


@pytest.mark.slow
def test_what_cannot_be_expressed_leaves_nothing_at_the_destination(tmp_path, capsys):
    make(tmp_path / "hf", {**images.rules(72, 64, "bicubic"), "resample": 0}, width_multiplier=0.5)
    for argv, named in (
        (["hf", "out", "--to=timm"], "resample=0"),
        (["hf", "out", "--to=tf"], "--to must be one of hf, timm, cvnets, orbax, got 'tf'"),
        (["nowhere", "out", "--to=hf"], "nowhere does not exist"),
        (["hf", "hf", "--to=hf"], "hf exists: choose another destination"),
        (["hf", "out"], "--to is required"),
    ):
        paths = [str(tmp_path / word) for word in argv[:2]]
        with pytest.raises(SystemExit) as leaving:
            main(["convert", *paths, *argv[2:]])
        assert leaving.value.code in (1, 2)
        assert named in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_conversion_is_checked_on_photographs_under_the_rules_of_each_side(tmp_path):
    """BGR becomes RGB by the first convolution; a dilation that the target lacks is refused."""
    rules = images.rules(72, 64, "bilinear", flip=True)
    make(tmp_path / "hf", rules, width_multiplier=0.5, odd_size_rule="drop")
    report = convert(tmp_path / "hf", tmp_path / "timm", "timm")
    assert "on two photographs differ by" in report.rows["check"]
    assert any(note.startswith("channel order: ") for note in report.notes)
    assert any("odd_size_rule='drop'" in note for note in report.notes)
    back = convert(tmp_path / "timm", tmp_path / "cvnets", "cvnets")
    assert "on two photographs differ by" in back.rows["check"]
    assert not formats.read(tmp_path / "cvnets").preprocessor["do_flip_channel_order"]

    whole = images.rules(64, None, "bilinear")
    fields = {"dilation_rule": "huggingface", "odd_size_rule": "drop", "output_stride": 16}
    cls = mv.MobileViTV2ForSemanticSegmentation
    make(tmp_path / "voc", whole, cls, width_multiplier=0.5, aspp_out_channels=16, **fields)
    with pytest.raises(WeightsError, match="nothing was written: dilation_rule='huggingface'"):
        convert(tmp_path / "voc", tmp_path / "out", "cvnets")
    assert not (tmp_path / "out").exists()


# ---- The hub, without a network --------------------------------------------------------------


def stand_in(monkeypatch, snapshot_download):
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_an_identifier_is_downloaded_pickles_only_where_there_is_nothing_else(
    tmp_path, monkeypatch
):
    model = make(tmp_path / "hf", images.rules(72, 64, "bicubic"), **SMALL)
    asked = []

    def download(identifier, allow_patterns):
        asked.append((identifier, allow_patterns))
        return str(tmp_path / "hf")

    stand_in(monkeypatch, download)
    loaded = mv.MobileViTV2ForImageClassification.from_pretrained("apple/mobilevitv2")
    assert loaded.config == model.config
    assert [identifier for identifier, _ in asked] == ["apple/mobilevitv2"]
    assert "model.safetensors" in asked[0][1] and "pytorch_model.bin" not in asked[0][1]
    (tmp_path / "hf" / "model.safetensors").unlink()
    (tmp_path / "hf" / "README.md").write_text("of another download")
    with pytest.raises(WeightsError, match="holds no weights that are read"):
        formats.read("apple/mobilevitv2")
    assert "pytorch_model.bin" in asked[-1][1]


def test_without_network_or_extra_the_error_says_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    stand_in(monkeypatch, fail)
    command = "`hf download apple/mobilevitv2 --local-dir DIR`"
    with pytest.raises(WeightsError, match=f"OSError: no route to host.*{command}"):
        formats.read("apple/mobilevitv2")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r'pip install "mobilevitv2-jax\[hub\]"'):
        mv.MobileViTV2Model.from_pretrained("runs/digit")
    with pytest.raises(WeightsError, match="a/b/c does not exist"):
        formats.read("a/b/c")


def test_a_directory_with_several_files_of_weights_asks_for_one(tmp_path):
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match="a.pt, b.pt: name one of these files"):
        formats.read(tmp_path)
    (tmp_path / "b.pt").unlink()
    assert tensors.find(tmp_path).name == "a.pt"
