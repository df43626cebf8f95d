"""MixUp and CutMix: what is drawn, what images and losses become, and that parts change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise_batch, tiny_config

from mobilevitv2_jax.models.losses import cross_entropy
from mobilevitv2_jax.models.pixels import Pixels
from mobilevitv2_jax.training import mixing

SIZE, SIDE = 16, 32
MIXUP, CUTMIX = {"augment.mixup": 0.2}, {"augment.cutmix": 1.0}


@functools.cache
def drawn():
    """Returns what `draw` says of the batch of `noise_batch`, for 2,000 keys."""
    config = tiny_config(MIXUP | CUTMIX)

    def draw(key):
        batch = mixing.draw(noise_batch(), key, config)
        partners = [batch.pop(name) for name in ("partner_image", "partner_label")]
        return {name: batch[name] for name in ("box", "opacity", "share")}, partners

    keys = jax.vmap(jax.random.key)(jnp.arange(2000))
    found, (images, labels) = jax.jit(jax.vmap(draw, out_axes=(0, None)))(keys)
    partners = {"partner_image": images, "partner_label": labels}
    return jax.device_get((found, partners))


def one(cut):
    """Returns a batch with what was drawn for it: CutMix or MixUp."""
    found, partners = drawn()
    number = np.flatnonzero((found["opacity"][:, 0] == 1) == cut)[1]
    return {**noise_batch(), **partners, **{name: x[number].copy() for name, x in found.items()}}


@pytest.mark.slow
def test_each_example_has_the_one_before_it_as_partner():
    batch, found = noise_batch(), one(cut=False)
    for number in range(SIZE):
        np.testing.assert_array_equal(found["partner_image"][number], batch["image"][number - 1])
        assert found["partner_label"][number] == batch["label"][number - 1]


def test_a_batch_is_mixed_in_one_way():
    found, _ = drawn()
    for name in ("box", "opacity", "share"):
        assert (found[name] == found[name][:, :1]).all()


def test_mixup_adds_images_by_their_shares():
    batch = one(cut=False)
    share = batch["share"][0]
    assert 0 < share < 1
    expected = share * (batch["image"] / 255) + (1 - share) * (batch["partner_image"] / 255)
    # float32: values below 1 are rounded to 6e-8 a few times.
    np.testing.assert_allclose(mixing.images(batch, Pixels()), expected, rtol=0, atol=3e-7)


def test_cutmix_lays_a_box_of_the_partner_over_the_image_and_shares_by_area():
    batch = one(cut=True)
    top, left, bottom, right = batch["box"][0]
    assert 0 <= top < bottom <= SIDE and 0 <= left < right <= SIDE
    expected = batch["image"].copy()
    expected[:, top:bottom, left:right] = batch["partner_image"][:, top:bottom, left:right]
    # Nothing but 0 and 1 is multiplied with; a division in float32.
    np.testing.assert_allclose(mixing.images(batch, Pixels()), expected / 255, rtol=1e-6)
    area = (bottom - top) * (right - left)
    np.testing.assert_allclose(batch["share"], 1 - area / SIDE**2, rtol=1e-6)


def test_with_both_on_a_coin_chooses_one_for_each_batch():
    found, _ = drawn()
    cut = found["opacity"][:, 0] == 1
    boxes = found["box"][:, 0]
    assert not boxes[~cut].any()
    assert abs(cut.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)


@pytest.mark.parametrize(("changes", "cut"), [(MIXUP, False), (CUTMIX, True)])
def test_with_one_on_it_is_always_taken(monkeypatch, changes, cut):
    # Quick to compile; the true distribution is looked at elsewhere.
    monkeypatch.setattr(jax.random, "beta", lambda key, a, b: jax.random.uniform(key))
    config = tiny_config(changes)
    draw = jax.jit(lambda key: mixing.draw(noise_batch(), key, config))
    found = [draw(jax.random.key(seed)) for seed in range(8)]
    assert [bool(x["opacity"][0] == 1) for x in found] == [cut] * 8
    assert [bool(x["box"].any()) for x in found] == [cut] * 8


def test_the_shares_of_mixup_have_the_distribution_beta():
    found, _ = drawn()
    shares = found["share"][found["opacity"][:, 0] != 1, 0]
    variance = 1 / (4 * (2 * 0.2 + 1))  # of Beta(0.2, 0.2)
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(variance / len(shares))
    # The mean of squared distances, each at most 1/4 and so of a deviation below 1/8.
    assert abs(np.square(shares - 0.5).mean() - variance) < 4 / 8 / np.sqrt(len(shares))


def test_boxes_of_cutmix_are_centred_anywhere_and_of_the_area_that_was_drawn():
    found, _ = drawn()
    boxes = found["box"][found["opacity"][:, 0] == 1, 0]
    whole = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < SIDE).all(1)
    sides = boxes[whole, 2:] - boxes[whole, :2]
    # Half a side is the integer part of 32 sqrt(share) / 2: both sides of a box are equal, even.
    assert (sides[:, 0] == sides[:, 1]).all() and (sides % 2 == 0).all()
    assert set((boxes[whole, :2] + sides // 2).ravel()) >= set(range(4, 29))
    # Beta(1, 1) is uniform, a half side below 4 of 16 has a share below 1/16, and its centre is
    # within 4 pixels of an edge in less than half of the cases.
    tiny = (sides[:, 0] < 8).sum() / len(boxes)
    assert 0.5 / 16 - 0.02 < tiny < 1 / 16 + 0.02


def test_the_loss_is_the_cross_entropy_with_the_mixed_targets():
    logits = np.random.RandomState(0).normal(size=(SIZE, 10)).astype(np.float32)
    loss = functools.partial(cross_entropy, logits, label_smoothing=0.1)
    for cut in (False, True):
        batch = one(cut)
        found = mixing.losses(batch, loss)
        share = batch["share"][:, None].astype(np.float64)
        classes = np.eye(10)
        target = share * classes[batch["label"]] + (1 - share) * classes[batch["partner_label"]]
        target = 0.9 * target + 0.1 / 10
        log_probabilities = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
        np.testing.assert_allclose(found, -(target * log_probabilities).sum(1), rtol=1e-5)


def test_a_wrong_label_shows_in_the_loss_of_both_examples_that_it_is_in():
    batch = one(cut=False)
    batch["label"][3] = 99
    batch["partner_label"] = np.roll(batch["label"], 1)
    logits = np.zeros((SIZE, 10), np.float32)
    losses = mixing.losses(batch, lambda labels: cross_entropy(logits, labels))
    assert np.flatnonzero(np.isnan(losses)).tolist() == [3, 4]


def test_a_batch_for_which_nothing_was_drawn_is_left_alone():
    batch = noise_batch()
    np.testing.assert_array_equal(mixing.images(batch, Pixels()), Pixels()(batch["image"]))
    np.testing.assert_array_equal(mixing.losses(batch, lambda labels: labels), batch["label"])
    assert not mixing.is_on(tiny_config())
    assert mixing.is_on(tiny_config(MIXUP)) and mixing.is_on(tiny_config(CUTMIX))
