"""MobileViTV2Config: fields, ranges, Hugging Face's config.json, and the table of channels."""

import dataclasses
import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from mobilevitv2_jax.models.config import MobileViTV2Config

# config.json as published beside the weights of a MobileViTV2; the classes are cut to three.
PUBLISHED = {
    "architectures": ["MobileViTV2ForImageClassification"],
    "aspp_dropout_prob": 0.1,
    "aspp_out_channels": 512,
    "atrous_rates": [6, 12, 18],
    "attn_dropout": 0.0,
    "base_attn_unit_dims": [128, 192, 256],
    "classifier_dropout_prob": 0.1,
    "conv_kernel_size": 3,
    "expand_ratio": 2.0,
    "ffn_dropout": 0.0,
    "ffn_multiplier": 2,
    "hidden_act": "swish",
    "id2label": {"0": "tench", "1": "goldfish", "2": "great white shark"},
    "image_size": 256,
    "initializer_range": 0.02,
    "label2id": {"goldfish": 1, "great white shark": 2, "tench": 0},
    "layer_norm_eps": 1e-05,
    "mlp_ratio": 2.0,
    "model_type": "mobilevitv2",
    "n_attn_blocks": [2, 4, 3],
    "num_channels": 3,
    "output_stride": 32,
    "patch_size": 2,
    "semantic_loss_ignore_index": 255,
    "torch_dtype": "float32",
    "transformers_version": "4.30.0.dev0",
    "width_multiplier": 1.0,
}

# Stem, layers 1 to 5 and attention: ml-cvnets, `cvnets/models/classification/config/
# mobilevit_v2.py` with `utils/math_utils.py::make_divisible`; the odd widths are from
# Hugging Face's model.
CHANNELS = {
    0.5: (16, (32, 64, 128, 192, 256), (64, 96, 128)),
    0.75: (24, (48, 96, 192, 288, 384), (96, 144, 192)),
    1.0: (32, (64, 128, 256, 384, 512), (128, 192, 256)),
    1.25: (40, (80, 160, 320, 480, 640), (160, 240, 320)),
    1.5: (48, (96, 192, 384, 576, 768), (192, 288, 384)),
    1.75: (56, (112, 224, 448, 672, 896), (224, 336, 448)),
    2.0: (64, (128, 256, 512, 768, 1024), (256, 384, 512)),
    0.25: (16, (16, 32, 64, 96, 128), (32, 48, 64)),
    0.3: (16, (32, 40, 80, 112, 152), (40, 56, 80)),
    0.33: (16, (32, 40, 88, 128, 168), (40, 64, 88)),
    0.6: (24, (48, 80, 152, 232, 304), (80, 112, 152)),
    1.9: (64, (128, 240, 488, 728, 976), (240, 368, 488)),
    2.5: (64, (160, 320, 640, 960, 1280), (320, 480, 640)),
}


@pytest.mark.parametrize("width", CHANNELS)
def test_channels_of_every_width_are_those_of_the_table(width):
    config = MobileViTV2Config(width_multiplier=width)
    derived = (config.stem_channels, config.stage_channels, config.attention_channels)
    assert derived == CHANNELS[width]


def test_an_unknown_argument_names_the_nearest_field():
    with pytest.raises(TypeError, match=r"no field 'width_multiplyer' \(did you mean 'width_mul"):
        MobileViTV2Config(width_multiplyer=1.0)


BAD_VALUES = [
    ("num_channels", 0),
    ("num_channels", True),
    ("image_size", 25.6),
    ("patch_size", -1),
    ("aspp_out_channels", "many"),
    ("conv_kernel_size", 4),
    ("conv_kernel_size", -1),
    ("semantic_loss_ignore_index", None),
    ("output_stride", 4),
    ("width_multiplier", 0),
    ("width_multiplier", float("nan")),
    ("width_multiplier", float("inf")),
    ("expand_ratio", -1.0),
    ("ffn_multiplier", "2"),
    ("ffn_multiplier", 0.1),
    ("layer_norm_eps", 0.0),
    ("initializer_range", -0.1),
    ("classifier_dropout_prob", 1.0),
    ("aspp_dropout_prob", -0.1),
    ("attn_dropout", None),
    ("ffn_dropout", 2),
    ("atrous_rates", (6, 12)),
    ("n_attn_blocks", (2, 4, 0)),
    ("base_attn_unit_dims", "abc"),
    ("output_hidden_states", 1),
    ("return_dict", None),
    ("classifier_dropout", "yes"),
    ("stochastic_depth", 1.0),
    ("auxiliary_head", 1),
    ("segmentation_head", "deeplab"),
    ("align_corners", None),
    ("rematerialize", "yes"),
    ("problem_type", "classification"),
    ("dilation_rule", "timm"),
    ("odd_size_rule", ""),
    ("initialization", None),
    ("dtype", "float8"),
    ("param_dtype", "fp32"),
    ("depthwise", "shift"),
    ("pointwise", "dot"),
    ("gradients", "automatic"),
    ("hidden_act", "swich"),
    ("batch_norm_group_size", 0),
    ("num_labels", -1),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got ") as error:
        MobileViTV2Config(**{name: value})
    assert repr(value) in str(error.value)


def test_every_field_but_the_labels_has_a_value_that_is_refused():
    fields = {field.name for field in dataclasses.fields(MobileViTV2Config)}
    assert fields - {name for name, _ in BAD_VALUES} == {"id2label", "label2id", "unknown"}


@pytest.mark.parametrize("value", [jnp.bfloat16, np.dtype("float32"), 32])
def test_a_type_is_named_by_a_word(value):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16"):
        MobileViTV2Config(dtype=value)


def test_a_head_whose_branches_would_have_no_channels_is_refused():
    with pytest.raises(ValueError, match="segmentation_head must be deeplabv3 at this width"):
        MobileViTV2Config(segmentation_head="pspnet", width_multiplier=0.1)


def test_labels_are_those_of_all_classes_from_0_on():
    with pytest.raises(ValueError, match="id2label must name the classes 0 to 1, got"):
        MobileViTV2Config(id2label={1: "a", 2: "b"})


def test_a_misspelt_choice_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'swish'"):
        MobileViTV2Config(hidden_act="swich")


def test_labels_follow_from_their_number_and_the_number_from_the_labels():
    assert MobileViTV2Config().id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert MobileViTV2Config(num_labels=0).id2label == {}
    config = MobileViTV2Config(id2label={"0": "cat", "1": "dog", "2": "cow"})
    assert config.num_labels == 3
    assert config.label2id == {"cat": 0, "dog": 1, "cow": 2}
    with pytest.raises(ValueError, match="num_labels must equal the length of id2label, which is"):
        MobileViTV2Config(num_labels=4, id2label={0: "cat"})


def test_replace_derives_labels_anew_when_their_number_changes():
    config = MobileViTV2Config(id2label={0: "cat", 1: "dog"}, unknown={"x": 1})
    assert config.replace(image_size=64).id2label == {0: "cat", 1: "dog"}
    assert config.replace(num_labels=1).id2label == {0: "LABEL_0"}
    assert config.replace(id2label={0: "a", 1: "b", 2: "c"}).num_labels == 3
    assert config.replace(num_labels=1).unknown == {"x": 1}
    with pytest.raises(TypeError, match="no field 'imagesize'"):
        config.replace(imagesize=3)


def test_a_published_config_is_read_without_a_warning_and_written_back_whole(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = MobileViTV2Config.from_dict(PUBLISHED)
    assert config.num_labels == 3 and config.id2label[1] == "goldfish"
    assert config.atrous_rates == (6, 12, 18)
    assert config.dtype == "float32"

    config.save_pretrained(tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {key: written[key] for key in PUBLISHED} == PUBLISHED
    assert written["dilation_rule"] == "cvnets"
    assert MobileViTV2Config.from_pretrained(tmp_path / "model") == config


def test_our_own_fields_survive_the_round_trip():
    config = MobileViTV2Config(
        dilation_rule="huggingface",
        odd_size_rule="drop",
        dtype="bfloat16",
        batch_norm_group_size=128,
        depthwise="shifts",
    )
    assert MobileViTV2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_numbers_are_written_with_the_types_that_hugging_face_demands():
    values = MobileViTV2Config(ffn_multiplier=2.0, expand_ratio=2).to_dict()
    assert type(values["ffn_multiplier"]) is int
    assert type(values["expand_ratio"]) is float
    assert MobileViTV2Config(ffn_multiplier=1.5).to_dict()["ffn_multiplier"] == 1.5


def test_the_storage_type_of_a_published_file_is_not_the_type_of_the_computation():
    config = MobileViTV2Config.from_dict({**PUBLISHED, "dtype": "float16"})
    assert config.dtype == "float32"
    assert config.unknown["dtype"] == "float16"


def test_unknown_keys_are_kept_written_back_and_named_in_one_warning():
    values = {**PUBLISHED, "drop_path": 0.1, "output_strid": 16}
    with pytest.warns(UserWarning) as caught:
        config = MobileViTV2Config.from_dict(values)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "drop_path" in message
    assert "output_strid (did you mean 'output_stride'?)" in message
    assert config.to_dict()["drop_path"] == 0.1


def test_another_model_s_config_is_refused():
    with pytest.raises(ValueError, match="model_type must be 'mobilevitv2', got 'vit'"):
        MobileViTV2Config.from_dict({**PUBLISHED, "model_type": "vit"})


def test_a_function_as_activation_is_used_and_refused_at_save(tmp_path):
    config = MobileViTV2Config(hidden_act=abs)
    with pytest.raises(ValueError, match="hidden_act must be a name to be saved"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model configuration at"):
        MobileViTV2Config.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        MobileViTV2Config.from_pretrained(tmp_path)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MobileViTV2Config().image_size = 3
