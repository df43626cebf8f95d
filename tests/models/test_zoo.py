"""Models by name."""

import pytest
from flax import nnx

import mobilevitv2_jax as mv


def test_the_seven_widths_are_listed_and_filtered():
    names = [f"mobilevitv2_{width}" for width in ("050", "075", "100", "125", "150", "175", "200")]
    assert mv.list_models("mobilevitv2*") == names
    for head in ("deeplabv3", "pspnet"):
        assert mv.list_models(f"{head}_*") == [f"{head}_{name}" for name in names]
    assert mv.list_models() == mv.list_models("*mobilevitv2*")
    assert mv.list_models("mobile*_1?0") == ["mobilevitv2_100", "mobilevitv2_150"]
    assert mv.list_models("resnet*") == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.endswith(("050", "200")) else pytest.mark.slow)
        for name in mv.list_models()
    ],
)
def test_a_name_gives_its_width(name):
    model = nnx.eval_shape(lambda: mv.create_model(name, num_labels=7, n_attn_blocks=(1, 1, 1)))
    assert model.config.width_multiplier == int(name[-3:]) / 100
    assert model.config.num_labels == 7
    if "_mobile" in name:
        assert model.config.segmentation_head == name.partition("_")[0]
        assert model.config.output_stride == 16
    assert model.config.n_attn_blocks == (1, 1, 1)


def test_classes_may_be_given_by_name():
    model = nnx.eval_shape(lambda: mv.create_model("mobilevitv2_050", id2label={0: "a", 1: "b"}))
    assert model.config.num_labels == 2


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mobilevitv2_100'"):
        mv.create_model("mobilevit2_100")
