"""Costs against the published and the calculated figures."""

import dataclasses

import pytest
from flax import nnx

import mobilevitv2_jax as mv
from mobilevitv2_jax.models.summary import render, summarize

# Giga multiply-accumulates at 256x256 calculated from the layers' shapes (with the 0.06 % of the
# attention's elementwise products, which are not counted here); parameters with 1000 classes.
COSTS = {
    0.5: (0.465, 1_370_593),
    0.75: (1.029, 2_866_009),
    1.0: (1.813, 4_901_841),
    1.25: (2.818, 7_478_089),
    1.5: (4.044, 10_594_753),
    1.75: (5.491, 14_251_833),
    2.0: (7.158, 18_449_329),
}
SLOW = sorted(COSTS.keys() - {0.5, 1.0})
# timm's results tables, millions at 256x256.
ACTIVATIONS = {0.5: 8.04, 1.0: 16.08, 2.0: 32.15}


@pytest.mark.parametrize(
    "width", [0.5, *(pytest.param(width, marks=pytest.mark.slow) for width in (1.0, *SLOW))]
)
def test_costs_are_those_of_the_table(width):
    summary = summarize(mv.MobileViTV2Config(width_multiplier=width, num_labels=1000), 256)
    macs, parameters = COSTS[width]
    assert summary.macs / 1e9 == pytest.approx(macs, rel=0.005)
    assert summary.parameters == parameters
    if width in ACTIVATIONS:
        assert summary.activations / 1e6 == pytest.approx(ACTIVATIONS[width], abs=0.005)


@pytest.mark.slow
def test_rows_are_the_stages_and_add_up(make_model):
    model = make_model(image_size=64, return_dict=False)
    summary = summarize(model)
    assert [(row.name, row.output) for row in summary.rows] == [
        ("stem", (32, 32, 16)),
        ("stage 1", (32, 32, 16)),
        ("stage 2", (16, 16, 32)),
        ("stage 3", (8, 8, 64)),
        ("stage 4", (4, 4, 96)),
        ("stage 5", (2, 2, 128)),
        ("head", (5,)),
    ]
    stem, head = summary.rows[0], summary.rows[-1]
    assert stem.macs == 32 * 32 * 16 * 3 * 3 * 3
    assert stem.activations == 32 * 32 * 16
    assert stem.parameters == 16 * 3 * 3 * 3 + 2 * 16
    assert (head.macs, head.activations, head.parameters) == (128 * 5, 5, 129 * 5)
    for count in ("parameters", "macs", "activations"):
        assert getattr(summary, count) == sum(getattr(row, count) for row in summary.rows)


@pytest.mark.slow
def test_a_bare_backbone_has_no_head():
    config = mv.MobileViTV2Config(width_multiplier=0.5)
    model = nnx.eval_shape(lambda: mv.MobileViTV2Model(config, rngs=nnx.Rngs(0)))
    summary = summarize(model, (224, 192))
    assert summary.rows[-1].name == "stage 5"
    assert summary.rows[-1].output == (8, 6, 256)  # 7x6 resized to whole patches
    assert summary.parameters == 1_113_593


@pytest.mark.slow
def test_the_way_convolutions_are_expressed_does_not_matter():
    config = mv.MobileViTV2Config(width_multiplier=0.25)
    other = config.replace(depthwise="shifts", pointwise="convolution")
    assert summarize(config, 64) == summarize(other, 64)


def test_the_table_is_aligned_and_ends_in_totals():
    summary = summarize(mv.MobileViTV2Config(width_multiplier=0.25), 64)
    lines = render(summary).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == len(summary.rows) + 4
    assert lines[-1].startswith("total")
    assert f"{summary.parameters:,}" in lines[-1]
    assert dataclasses.is_dataclass(summary.rows[0])
