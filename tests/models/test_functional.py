"""A model is taken apart into plain pytrees and put together without loss."""

import jax
import numpy as np
import pytest

from mobilevitv2_jax.models import functional


def test_split_and_merge_keep_every_array_and_the_mode(make_model, images):
    model = make_model()
    graphs, parameters, statistics = functional.split(model)
    for graph, training in ((graphs.train, True), (graphs.evaluation, False)):
        merged = functional.merge(graph, parameters, statistics)
        assert merged.backbone.stem.normalization.use_running_average != training
        assert merged.config == model.config
        for before, after in zip((parameters, statistics), functional.arrays(merged), strict=True):
            assert before.keys() == after.keys()
            for name in before:
                np.testing.assert_array_equal(before[name], after[name])


def test_arrays_are_a_plain_pytree_of_named_leaves(make_model):
    parameters, statistics = functional.arrays(make_model())
    assert type(parameters) is type(statistics) is dict
    assert "backbone.stages.2.1.layers.0.attention.qkv.kernel" in parameters
    assert "backbone.stem.normalization.variance" in statistics
    assert not parameters.keys() & statistics.keys()
    assert all(isinstance(x, jax.Array) for x in (*parameters.values(), *statistics.values()))


def test_update_writes_parameters_and_statistics_and_nothing_else(make_model):
    model, other = make_model(seed=0), make_model(seed=1)
    before = {**functional.arrays(model)[0], **functional.arrays(model)[1]}
    new = {
        "classifier.kernel": functional.arrays(other)[0]["classifier.kernel"],
        "backbone.stem.normalization.mean": before["backbone.stem.normalization.mean"] + 1,
    }
    functional.update(model, new)
    after = {**functional.arrays(model)[0], **functional.arrays(model)[1]}
    for name, x in after.items():
        np.testing.assert_array_equal(x, new.get(name, before[name]))


def test_update_names_a_path_that_does_not_exist(make_model):
    with pytest.raises(KeyError, match="backbone.steam"):
        functional.update(make_model(), {"backbone.steam": np.zeros(3)})
