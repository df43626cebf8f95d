"""A run that begins with weights: their rules become its own, and it computes as they did."""

import json

import numpy as np
import pytest
from reference_weights import reference_weights, shapes_of
from tiny import VALUES, tiny_config

import mobilevitv2_jax as mv
from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.config import override, to_json
from mobilevitv2_jax.data.augment import evaluation_transform
from mobilevitv2_jax.data.digits import load
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.models.pixels import Pixels
from mobilevitv2_jax.training.experiment import Experiment, prepare
from mobilevitv2_jax.training.initialization import processor, resolve
from mobilevitv2_jax.training.run_directory import open_run
from mobilevitv2_jax.weights import images, pretrained

SHAPE = {
    name.removeprefix("model."): value
    for name, value in VALUES.items()
    if name.startswith("model.")
}
FREE = {"eval.resize": 64, "eval.crop": 64, "data.image_size": 64}  # the schema's own: not set


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint of Hugging Face's kind: BGR, bilinear, 72 -> 64 pixels, other classes."""
    place = tmp_path_factory.mktemp("source")
    config = mv.MobileViTV2Config(
        **SHAPE, num_labels=7, dilation_rule="huggingface", odd_size_rule="drop"
    )
    model = mv.MobileViTV2ForImageClassification(config, rngs=Blank())
    mv.weights.load_state_dict(model, reference_weights(shapes_of(mv.weights.state_dict(model))))
    model.save_pretrained(place, processor=images.rules(72, 64, "bilinear", flip=True))
    return place


def test_the_rules_of_the_weights_become_the_runs_and_are_told(source):
    lines = []
    found = resolve(tiny_config({"init.pretrained": str(source), **FREE}), say=lines.append)
    assert found.data.channel_order == "bgr"
    assert (found.eval.resize, found.eval.crop, found.data.image_size) == (72, 64, 64)
    assert found.eval.interpolation == "bilinear"
    assert (found.model.dilation_rule, found.model.odd_size_rule) == ("huggingface", "drop")
    assert f"data.channel_order = 'bgr', as {source} has it (was 'rgb')" in lines
    rules = processor(found)
    assert rules.do_flip_channel_order and rules.size == {"shortest_edge": 72}
    assert rules.resample == 2 and rules.crop_size == {"height": 64, "width": 64}


def test_what_a_config_sets_and_what_it_names_stands(source):
    changes = {"eval.resize": 80, "init.keep": "data.channel_order, eval.interpolation"}
    lines = []
    found = resolve(
        tiny_config({**FREE, **changes, "init.pretrained": str(source)}), say=lines.append
    )
    assert found.data.channel_order == "rgb" and found.eval.interpolation == "bicubic"
    assert (found.eval.resize, found.eval.crop) == (80, 64)
    assert f"data.channel_order = 'rgb' stands; {source} has 'bgr'" in lines


def test_what_the_command_line_sets_stands(source, capsys):
    argv = ["train", "--dry-run", f"--config.init.pretrained={source}"]
    with pytest.raises(SystemExit):
        main([*argv, "--config.data.channel_order=rgb"])
    assert "init.keep = 'data.channel_order,init.pretrained'" in capsys.readouterr().out


def test_a_run_that_goes_on_has_its_rules_without_the_weights(source, tmp_path):
    config = tiny_config({"init.pretrained": str(source), **FREE})
    found = resolve(config)
    (tmp_path / "config.json").write_text(to_json(found))
    moved = source.rename(source.with_name("elsewhere"))
    try:
        assert to_json(resolve(config, tmp_path)) == to_json(found)
        with pytest.raises(ConfigError, match=r"config.init.pretrained: .*source.* does not exist"):
            resolve(config, tmp_path / "new")
    finally:
        moved.rename(source)


def test_options_that_may_change_may_when_a_run_that_began_with_weights_goes_on(source, tmp_path):
    def asked(**values):
        config = tiny_config(FREE).copy_and_resolve_references()
        override(config, {"init.pretrained": str(source), "data.channel_order": "rgb", **values})
        return config

    begun = asked(**{"schedule.stop_at": "2 steps"})
    open_run(resolve(begun), tmp_path)
    moved = source.rename(source.with_name("elsewhere"))
    try:
        for values in ({}, {"log.every": "1 steps"}, {"checkpoint.allow_changes": "seed"}):
            found = resolve(asked(**values), tmp_path)
            assert found.data.channel_order == "rgb" and found.model.odd_size_rule == "drop"
            open_run(found, tmp_path)
        with pytest.raises(ConfigError, match="another config: eval.resize: 72 -> 80"):
            open_run(resolve(asked(**{"eval.resize": 80, "eval.crop": 64}), tmp_path), tmp_path)
    finally:
        moved.rename(source)


def test_a_key_to_keep_that_is_none_is_refused(source):
    changes = {"init.pretrained": str(source), "init.keep": "eval.resise"}
    with pytest.raises(ConfigError, match=r"keep names 'eval.resise'.*'eval.resize'"):
        resolve(tiny_config({**FREE, **changes}))


def test_a_model_of_another_shape_is_refused_by_the_key(source):
    changes = {"init.pretrained": str(source), "model.width_multiplier": 0.5}
    with pytest.raises(ConfigError, match="config.model.width_multiplier must be 0.25, .* got 0.5"):
        resolve(tiny_config(changes))


@pytest.mark.slow
def test_weights_of_other_classes_lend_their_backbone_and_the_head_is_new(source):
    config = resolve(tiny_config({"init.pretrained": str(source), **FREE}))
    lines = []
    state = prepare(config).initial_state(lines.append)
    expected = pretrained.load(source).model
    theirs = pretrained.functional.arrays(expected)[0]
    assert state.parameters["classifier.kernel"].shape == (128, 10)
    for path, x in state.parameters.items():
        if not path.startswith("classifier."):
            np.testing.assert_array_equal(x, theirs[path], err_msg=path)
    assert lines[0].startswith(f"weights of {source}")
    assert "2 newly initialised" in lines[1]


@pytest.mark.slow
def test_a_segmentation_begins_with_a_classifier(source):
    changes = {
        "init.pretrained": str(source),
        "task": "segmentation",
        "data.source": "digit_scenes",
        "checkpoint.best_metric": "eval_ema_squashed/miou",
        "model.aspp_out_channels": 16,
        "model.output_stride": 16,
    }
    config = resolve(tiny_config({**changes, **FREE}))
    assert config.data.channel_order == "bgr" and config.model.dilation_rule == "huggingface"
    assert processor(config).size == {"shortest_edge": 72}
    lines = []
    state = prepare(config).initial_state(lines.append)
    assert "segmentation_head.classifier.kernel" in state.parameters
    assert "not used, for the model has no place for them:\n  classifier.bias" in "\n".join(lines)


def test_evaluation_sees_the_pixels_that_the_weights_own_processor_makes(source):
    """And hence gives the same logits. Tolerance: a division or a multiplication in float32."""
    config = resolve(tiny_config({"init.pretrained": str(source), **FREE}))
    evaluated = load("test")
    transform, pixels = evaluation_transform(config), Pixels.from_config(config)
    images = np.stack([transform(evaluated[index])["image"] for index in range(4)])
    pictures = [evaluated[index]["image"] for index in range(4)]
    for rules in (mv.MobileViTImageProcessor.from_pretrained(source), processor(config)):
        expected = rules(pictures)["pixel_values"]
        np.testing.assert_allclose(pixels(images), expected, rtol=2e-7)


@pytest.mark.slow
def test_weights_are_evaluated_on_the_classes_that_they_have(source, monkeypatch, capsys):
    """The evaluation itself is that of runs, and stands still here."""
    seen = {}

    def evaluate_weights(experiment, weights, over):
        seen.update(weights)
        assert experiment.config.data.channel_order == "bgr"
        return {"eval/top1": 0.5, "eval/loss": 1.0}

    monkeypatch.setattr(Experiment, "evaluate_weights", evaluate_weights)
    flags = [f"--config.{key}={x}" for key, x in VALUES.items() if key not in FREE]
    argv = ["eval", *flags, f"--pretrained={source}"]
    with pytest.raises(SystemExit) as leaving:
        main(argv)  # ten digits, and weights of seven classes
    assert leaving.value.code == 2
    assert "2 mismatched: classifier.bias: expected float32 [10]" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leaving:
        main([*argv, "--config.data.source=synthetic", "--config.model.num_labels=7"])
    assert leaving.value.code == 0 and "50.0000%" in capsys.readouterr().out
    theirs = pretrained.functional.arrays(pretrained.load(source).model)[0]
    np.testing.assert_array_equal(seen["eval"][0]["classifier.kernel"], theirs["classifier.kernel"])
    with pytest.raises(SystemExit):
        main(["eval", "--workdir", "x", f"--pretrained={source}"])
    assert "--workdir and --pretrained exclude each other" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_began_with_weights_predicts_as_it_evaluates(source, tmp_path, capsys):
    """Two steps through the command line; its directory then is a model with its processor."""
    flags = {**VALUES, "schedule.total": "2 steps", "init.pretrained": str(source)}
    flags = {key: x for key, x in flags.items() if key not in FREE}
    argv = ["train", "--workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as leaving:
        main([*argv, *(f"--config.{key}={value}" for key, value in flags.items())])
    assert leaving.value.code == 0
    rules = json.loads((tmp_path / "run/model/preprocessor_config.json").read_text())
    assert rules["do_flip_channel_order"] and rules["size"] == {"shortest_edge": 72}
    found = pretrained.load(tmp_path / "run")
    assert found.model.config.odd_size_rule == "drop" and found.model.config.num_labels == 10
    assert found.stored.preprocessor == rules
    again = pretrained.load(tmp_path / "run", average=False, checkpoint=2)
    trained, averaged = (np.asarray(x.model.classifier.kernel.get_value()) for x in (again, found))
    assert not np.array_equal(trained, averaged)
