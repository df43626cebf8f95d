"""`from_pretrained` and `save_pretrained`: every array is accounted for, whatever the source."""

import dataclasses
import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from reference_weights import reference_weights, shapes_of
from tiny import tiny_config

import mobilevitv2_jax as mv
from mobilevitv2_jax.config import to_json
from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.weights import formats, pretrained, tensors
from mobilevitv2_jax.weights.checkpoint import Checkpoints

FIELDS = {
    "width_multiplier": 0.25,
    "n_attn_blocks": (1, 1, 1),
    "base_attn_unit_dims": (16, 24, 32),
    "aspp_out_channels": 16,
    "odd_size_rule": "drop",
    "id2label": {0: "cat", 1: "dog", 2: "cow"},
}
CLASSES = (
    mv.MobileViTV2Model,
    mv.MobileViTV2ForImageClassification,
    mv.MobileViTV2ForSemanticSegmentation,
)
QKV = "mobilevitv2.encoder.layer.2.transformer.layer.0.attention.qkv_proj.convolution.weight"


@functools.cache
def make(cls=mv.MobileViTV2ForImageClassification, **fields):
    """Returns a model whose weights are those of `reference_weights`, in evaluation mode."""
    model = cls(mv.MobileViTV2Config(**{**FIELDS, **fields}), rngs=Blank())
    mv.weights.load_state_dict(model, reference_weights(shapes_of(mv.weights.state_dict(model))))
    model.eval()
    return model


def arrays_of(model):
    parameters, statistics = functional.arrays(model)
    return {path: np.asarray(x) for path, x in {**parameters, **statistics}.items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for path, x in left.items():
        np.testing.assert_array_equal(x, right[path], err_msg=path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directories of one model of each class."""
    places = {cls: tmp_path_factory.mktemp(cls.__name__) for cls in CLASSES}
    for cls, place in places.items():
        make(cls).save_pretrained(place)
    return places


@pytest.fixture
def copy(saved, tmp_path):
    """Returns a function that copies a saved classifier with changes to its arrays."""

    def change(changes, cls=mv.MobileViTV2ForImageClassification, **values):
        arrays = tensors.read(saved[cls] / "model.safetensors")
        arrays = {key: x for key, x in {**arrays, **changes}.items() if x is not None}
        tensors.write_safetensors(tmp_path / "model.safetensors", arrays)
        config = json.loads((saved[cls] / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **values}))
        return tmp_path

    return change


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_saved_loads_to_the_bit_with_its_config_in_evaluation_mode(cls, saved, recwarn):
    model = cls.from_pretrained(saved[cls])
    assert type(model) is cls and not recwarn.list
    assert_equal(arrays_of(model), arrays_of(make(cls)))
    assert model.config == make(cls).config
    assert model.config.id2label == FIELDS["id2label"]
    graph = nnx.graphdef(make(cls))
    assert nnx.graphdef(model) == graph


@pytest.mark.parametrize("cls", CLASSES)
def test_without_a_class_the_weights_say_which_it_is(cls, saved):
    assert type(pretrained.load(saved[cls]).model) is cls


def test_a_classifier_loads_into_the_backbone_and_names_what_it_leaves(saved):
    with pytest.warns(UserWarning, match="2 not used.*\n  classifier.bias\n  classifier.weight"):
        model = mv.MobileViTV2Model.from_pretrained(saved[mv.MobileViTV2ForImageClassification])
    whole = arrays_of(make())
    expected = {path: whole[f"backbone.{path}"] for path in arrays_of(model)}
    assert_equal(arrays_of(model), expected)


@pytest.mark.parametrize("source", [CLASSES[0], CLASSES[1]])
def test_a_backbone_loads_into_a_segmenter_whose_head_is_new_and_listed(source, saved):
    with pytest.warns(UserWarning) as caught:
        model = mv.MobileViTV2ForSemanticSegmentation.from_pretrained(
            saved[source], num_labels=5, output_stride=16
        )
    said = "\n".join(str(warning.message) for warning in caught)
    assert "newly initialised" in said and "segmentation_head.classifier.convolution.bias" in said
    assert ("classifier.weight" in said) == (source is CLASSES[1])
    assert model.config.num_labels == 5 and model.config.output_stride == 16
    arrays = arrays_of(model)
    for path, x in arrays_of(make(source)).items():
        if not path.startswith("classifier."):
            path = "backbone." + path.removeprefix("backbone.")
            np.testing.assert_array_equal(arrays[path], x)
    assert np.isfinite(arrays["segmentation_head.classifier.kernel"]).all()


def test_another_number_of_classes_replaces_the_head_only_when_asked(saved):
    place = saved[mv.MobileViTV2ForImageClassification]
    with pytest.raises(WeightsError, match="2 mismatched(.|\n)*ignore_mismatched_sizes=True"):
        mv.MobileViTV2ForImageClassification.from_pretrained(place, num_labels=7)
    with pytest.warns(UserWarning, match="newly initialised(.|\n)*classifier.weight"):
        model = mv.MobileViTV2ForImageClassification.from_pretrained(
            place, num_labels=7, ignore_mismatched_sizes=True
        )
    assert model.classifier.kernel.shape == (128, 7)
    assert model.config.id2label[6] == "LABEL_6"


@pytest.mark.parametrize("cls", CLASSES)
def test_an_incomplete_backbone_is_refused_for_every_task(cls, copy):
    with pytest.raises(WeightsError, match=f"1 missing:\n  {QKV}"):
        cls.from_pretrained(copy({QKV: None}))


def test_a_part_of_a_head_and_a_stranger_are_refused(copy):
    with pytest.raises(WeightsError) as caught:
        mv.MobileViTV2ForImageClassification.from_pretrained(
            copy({"classifier.bias": None, "mobilevitv2.extra": np.zeros(3, np.float32)})
        )
    assert "1 missing:\n  classifier.bias" in str(caught.value)
    assert "1 unexpected:\n  mobilevitv2.extra" in str(caught.value)


def test_a_backbone_of_another_shape_is_refused_even_when_classes_may_differ(copy):
    with pytest.raises(WeightsError, match=rf"1 mismatched:\n  {QKV}: expected float32 \[17, 8"):
        mv.MobileViTV2ForImageClassification.from_pretrained(
            copy({QKV: np.zeros((3, 3, 1, 1), np.float32)}), ignore_mismatched_sizes=True
        )


def test_values_that_are_not_finite_are_named(copy):
    bias = np.array([0, np.nan, 0], np.float32)
    with pytest.warns(UserWarning, match="1 with values that are NaN or infinite:\n  classifier"):
        mv.MobileViTV2ForImageClassification.from_pretrained(copy({"classifier.bias": bias}))


def test_half_precision_is_refused_unless_it_is_asked_for(copy, saved):
    whole = tensors.read(saved[CLASSES[1]] / "model.safetensors")
    half = {key: x.astype(np.float16) for key, x in whole.items() if x.dtype == np.float32}
    place = copy(half)
    with pytest.raises(WeightsError, match="are float16, and parameters are float32.*param_dtype"):
        mv.MobileViTV2ForImageClassification.from_pretrained(place)
    model = mv.MobileViTV2ForImageClassification.from_pretrained(place, param_dtype="float16")
    again = mv.weights.state_dict(model)
    for key, x in half.items():
        np.testing.assert_array_equal(again[key], x)


def test_a_config_of_hugging_face_s_own_brings_its_rules_and_ours_win_where_we_wrote(copy, saved):
    model = mv.MobileViTV2ForImageClassification.from_pretrained(
        copy({}, dilation_rule="cvnets", odd_size_rule="resize_back")
    )
    assert (model.config.dilation_rule, model.config.odd_size_rule) == ("cvnets", "resize_back")
    path = saved[CLASSES[1]] / "config.json"
    ours = ("dilation_rule", "odd_size_rule", "param_dtype", "depthwise")
    theirs = {key: x for key, x in json.loads(path.read_text()).items() if key not in ours}
    place = copy({})
    (place / "config.json").write_text(json.dumps(theirs))
    loaded = pretrained.load(place)
    assert "BGR, bilinear, 288 -> 256" in loaded.stored.assumed_images
    model = loaded.model
    assert (model.config.dilation_rule, model.config.odd_size_rule) == ("huggingface", "drop")
    model = mv.MobileViTV2ForImageClassification.from_pretrained(place, odd_size_rule="resize")
    assert model.config.odd_size_rule == "resize"


def test_a_segmentation_has_hugging_face_s_image_size_where_its_config_has_none(copy):
    path = copy({}, cls=CLASSES[2]) / "config.json"
    values = json.loads(path.read_text())
    del values["image_size"]
    path.write_text(json.dumps(values))
    found = formats.read(path.parent)
    assert found.config.image_size == 256  # its config's default
    assert "288 -> 256 pixels" in found.assumed_images


def write_shards(source, place):
    """Writes a saved model in two shards; returns their list and the shard of each key."""
    whole = tensors.read(source / "model.safetensors")
    keys = sorted(whole)
    places = {key: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, key in enumerate(keys)}
    for shard in set(places.values()):
        part = {key: whole[key] for key in keys if places[key] == shard}
        tensors.write_safetensors(place / shard, part)
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (place / "config.json").write_text((source / "config.json").read_text())
    return index, places


def test_the_list_of_shards_brings_the_processor_that_lies_beside_it(saved, tmp_path):
    index, _ = write_shards(saved[CLASSES[1]], tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 40, "resample": 2}')
    expected = mv.MobileViTImageProcessor.from_pretrained(tmp_path)
    assert expected.size == {"shortest_edge": 40}
    assert mv.MobileViTImageProcessor.from_pretrained(index) == expected
    with pytest.raises(WeightsError, match="config.json must end in .* to be read as weights"):
        mv.MobileViTImageProcessor.from_pretrained(tmp_path / "config.json")


def test_shards_are_read_as_one_and_refused_when_they_are_not_all_there(saved, tmp_path):
    index, places = write_shards(saved[CLASSES[1]], tmp_path)
    keys = sorted(places)
    model = mv.MobileViTV2ForImageClassification.from_pretrained(tmp_path)
    assert_equal(arrays_of(model), arrays_of(make()))
    index.write_text(json.dumps({"weight_map": {**places, "head.weight": "../away.safetensors"}}))
    with pytest.raises(WeightsError, match="must be a file beside it"):
        mv.MobileViTV2ForImageClassification.from_pretrained(tmp_path)
    index.write_text(
        json.dumps({"weight_map": {**places, "head.weight": keys and places[keys[0]]}})
    )
    with pytest.raises(WeightsError, match="differ in 1 tensors, one of them head.weight"):
        mv.MobileViTV2ForImageClassification.from_pretrained(tmp_path)
    index.write_text(json.dumps({"weight_map": {**places, "head.weight": index.name}}))
    with pytest.raises(WeightsError, match="index.json, which is a list of shards itself"):
        mv.MobileViTV2ForImageClassification.from_pretrained(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / places[keys[1]]).unlink()
    with pytest.raises(WeightsError, match="-00002-of-00002.safetensors, which is not there"):
        mv.MobileViTV2ForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("offset", [3, 200, -3], ids=["length", "header", "numbers"])
def test_a_flipped_bit_anywhere_is_noticed(offset, saved, tmp_path):
    place = tmp_path / "model.safetensors"
    data = bytearray((saved[CLASSES[1]] / "model.safetensors").read_bytes())
    data[offset] ^= 4
    place.write_bytes(data)
    (tmp_path / "config.json").write_text((saved[CLASSES[1]] / "config.json").read_text())
    with pytest.raises(WeightsError, match=r"model.safetensors is damaged|do not fit"):
        mv.MobileViTV2ForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 300, -1])
def test_a_truncated_file_is_refused_by_name(length, saved, tmp_path):
    place = tmp_path / "model.safetensors"
    place.write_bytes((saved[CLASSES[1]] / "model.safetensors").read_bytes()[:length])
    (tmp_path / "config.json").write_text((saved[CLASSES[1]] / "config.json").read_text())
    with pytest.raises(WeightsError, match="model.safetensors is damaged"):
        mv.MobileViTV2ForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html>", "a page of HTML"),
    ],
)
def test_what_lies_in_the_place_of_weights_is_told(data, said, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=f"model.safetensors cannot be read: .*{said}"):
        formats.read(tmp_path)


def test_what_is_no_model_of_this_kind_is_refused_by_name(tmp_path, copy):
    load = mv.MobileViTV2ForImageClassification.from_pretrained
    with pytest.raises(WeightsError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="empty holds no weights"):
        load(tmp_path / "empty")
    with pytest.raises(WeightsError, match="model_type must be 'mobilevitv2', got 'vit'"):
        load(copy({}, model_type="vit"))
    path = copy({}) / "config.json"
    path.write_text(json.dumps({"architecture": "resnet50"}))
    with pytest.raises(WeightsError, match="timm's 'resnet50'"):
        load(tmp_path)
    path.write_text("{")
    with pytest.raises(WeightsError, match="config.json is not valid JSON"):
        load(tmp_path)
    other = tmp_path / "other.safetensors"
    tensors.write_safetensors(other, {"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)})
    with pytest.raises(WeightsError, match="holds no MobileViTV2 .* its keys are conv1.weight"):
        load(other)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"resample": 7}, "resample must be one of Pillow's filters"),
        ({"crop_size": {"shortest_edge": 256}}, "crop_size must be a height and a width"),
    ],
)
def test_image_rules_that_cannot_be_used_are_refused_by_their_file(rules, said, copy):
    place = copy({})
    (place / "preprocessor_config.json").write_text(json.dumps(rules))
    for path in (place, place / "model.safetensors"):
        with pytest.raises(WeightsError, match=f"preprocessor_config.json: {said}"):
            formats.read(path)


def test_unknown_image_rules_are_told_by_the_processor_and_not_by_the_weights(copy, recwarn):
    place = copy({})
    (place / "preprocessor_config.json").write_text('{"resampel": 3}')
    rules = formats.read(place).preprocessor
    assert not recwarn.list
    with pytest.warns(UserWarning, match="without effect: resampel"):
        mv.MobileViTImageProcessor.from_dict(rules)


def test_an_unknown_option_names_the_nearest_field(saved):
    with pytest.raises(TypeError, match="did you mean 'num_labels'"):
        mv.MobileViTV2ForImageClassification.from_pretrained(saved[CLASSES[1]], num_label=3)


def test_saving_says_which_of_the_models_rules_hugging_face_does_not_have(tmp_path):
    model = make(CLASSES[2], output_stride=16, odd_size_rule="resize", auxiliary_head=False)
    with pytest.warns(UserWarning) as caught:
        model.save_pretrained(tmp_path)
    said = "\n".join(str(warning.message) for warning in caught)
    assert "dilation_rule='cvnets': at output_stride 16" in said
    assert "odd_size_rule='resize'" in said
    with pytest.raises(WeightsError, match="format must be one of hf.*got 'tim'"):
        model.save_pretrained(tmp_path, format="tim")


def scaled(model, factor):
    """Returns a copy of a model with other weights."""
    copied = nnx.clone(model)
    functional.update(copied, {path: factor * x for path, x in arrays_of(model).items()})
    return copied


@pytest.mark.filterwarnings("ignore:odd_size_rule")
@pytest.mark.parametrize("format", ["hf", "cvnets"])
def test_weights_that_cannot_be_written_whole_leave_the_old_ones(format, tmp_path, monkeypatch):
    model = make(n_attn_blocks=(2, 4, 3), base_attn_unit_dims=(128, 192, 256))
    model.save_pretrained(tmp_path, format=format)

    def fail(*_):
        raise OSError("out of power")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="out of power"):
        broken.setattr(os, "replace", fail)
        scaled(model, 2).save_pretrained(tmp_path, format=format)
    again = mv.MobileViTV2ForImageClassification.from_pretrained(tmp_path)
    assert_equal(arrays_of(again), arrays_of(model))


@pytest.mark.filterwarnings("ignore:odd_size_rule")
def test_old_weights_that_would_hide_the_new_ones_are_named_and_nothing_is_written(tmp_path):
    model = make(n_attn_blocks=(2, 4, 3), base_attn_unit_dims=(128, 192, 256))
    scaled(model, 2).save_pretrained(tmp_path, format="cvnets")
    model.save_pretrained(tmp_path)  # is found first
    with pytest.raises(WeightsError, match="model.safetensors would be read in the place"):
        scaled(model, 3).save_pretrained(tmp_path, format="cvnets")
    again = mv.MobileViTV2ForImageClassification.from_pretrained(tmp_path)
    assert_equal(arrays_of(again), arrays_of(model))
    (tmp_path / "model.safetensors").unlink()
    scaled(model, 3).save_pretrained(tmp_path, format="cvnets")
    again = mv.MobileViTV2ForImageClassification.from_pretrained(tmp_path)
    assert_equal(arrays_of(again), arrays_of(scaled(model, 3)))


# ---- Runs ------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a run's checkpoint holds of the model, and more that is not read."""

    parameters: dict
    statistics: dict
    ema_parameters: dict
    ema_statistics: dict
    optimizer: dict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints at steps 2 (the best) and 4; its average is twice its weights."""
    place = tmp_path_factory.mktemp("run")
    (place / "config.json").write_text(to_json(tiny_config()))
    make().config.save_pretrained(place / "model")
    (place / "model" / "preprocessor_config.json").write_text('{"do_flip_channel_order": true}')
    parameters, statistics = functional.arrays(make())
    with Checkpoints(place / "checkpoints", best_metric="eval_ema/top1") as checkpoints:
        for step, accuracy in ((2, 0.9), (4, 0.5)):
            scaled = optax.tree.scale(step, (parameters, statistics))
            double = optax.tree.scale(2 * step, (parameters, statistics))
            state = State(*scaled, *double, {"moment": jnp.zeros(3)})
            checkpoints.save(step, state, {}, {"eval_ema/top1": accuracy})
    return place


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, 8),
        pytest.param({"checkpoint": "best"}, 4, marks=pytest.mark.slow),
        ({"checkpoint": 2, "average": False}, 2),
        pytest.param({"average": False}, 4, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_gives_its_average_or_weights_of_the_step_that_is_asked_for(run, options, factor):
    found = pretrained.load(run, mv.MobileViTV2ForImageClassification, **options)
    expected = {path: np.float32(factor) * x for path, x in arrays_of(make()).items()}
    assert_equal(arrays_of(found.model), expected)
    assert found.model.config == make().config
    assert found.stored.preprocessor == {"do_flip_channel_order": True}


def test_a_run_without_the_step_or_without_any_is_refused(run, tmp_path):
    with pytest.raises(WeightsError, match="keeps no checkpoint 3; it has 2, 4"):
        pretrained.load(run, checkpoint=3)
    with pytest.raises(WeightsError, match="checkpoint must be latest, best or a step, got 'last'"):
        pretrained.load(run, checkpoint="last")
    (tmp_path / "config.json").write_text(to_json(tiny_config()))
    with pytest.raises(WeightsError, match="has no checkpoint yet"):
        pretrained.load(tmp_path)


def test_a_run_whose_image_rules_cannot_be_used_names_their_file(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "model" / "preprocessor_config.json").write_text('{"size": 0}')
    with pytest.raises(WeightsError, match="model/preprocessor_config.json: size must be pixels"):
        formats.read(tmp_path / "run")
