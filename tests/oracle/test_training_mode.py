"""A step in training mode against torch: loss, every gradient, and the BatchNorm statistics.

The references run in float64 and ours in float32. Tolerance: 1e-4, of a statistic's largest
absolute value, and for gradients of max(|leaf|, 1e-3 * the largest gradient of all): what
has a gradient of zero but for rounding (a bias before a softmax) is measured by the latter.

PyTorch normalises by the biased variance of the batch and feeds the running variance with the
unbiased one, n / (n - 1) times as large; so do we, whereas Flax's own BatchNorm feeds it with the
biased one. At the head's pooled branch, where n is the batch alone, that is no small matter.
"""

import jax
import numpy as np
import pytest
from oracle.cases import RULES
from oracle.comparison import our_model, timm_model
from reference_torch import channels_first, huggingface, state_of, torch
from reference_weights import LABELS, reference_images

import mobilevitv2_jax as mv
from mobilevitv2_jax.models import functional

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
BATCH = 4


def our_step(model, images, labels, source):
    """Returns the loss, and gradients and statistics under the source's keys."""
    graphs, parameters, statistics = functional.split(model)

    @jax.jit
    def step(parameters, statistics, images, labels):
        def loss(parameters):
            model = functional.merge(graphs.train, parameters, statistics)
            return model(images, labels).loss, functional.arrays(model)[1]

        return jax.value_and_grad(loss, has_aux=True)(parameters)

    with jax.default_matmul_precision("highest"):
        (loss, moved), gradients = step(parameters, statistics, images, labels)
    after = functional.merge(graphs.evaluation, gradients, moved)
    return loss, mv.weights.state_dict(after, source)


def compare(model, images, labels, source, theirs, their_loss):
    """Compares with a torch model that has gone back from its loss."""
    loss, arrays = our_step(model, images, labels, source)
    gradients = {key: x.grad.numpy() for key, x in theirs.named_parameters()}
    largest = max(np.abs(x).max() for x in gradients.values())
    errors = {"loss": abs(float(loss) - float(their_loss)) / abs(float(their_loss))}
    for key, reference in {**state_of(theirs), **gradients}.items():
        if key.endswith("num_batches_tracked"):
            continue
        scale = np.abs(reference).max()
        if key in gradients:
            scale = max(scale, 1e-3 * largest)
        errors[key] = np.abs(arrays[key] - reference).max() / scale
    assert len(errors) == 1 + sum(not key.endswith("num_batches_tracked") for key in arrays)
    return errors


def check(errors, record_property):
    statistics = {key: x for key, x in errors.items() if "running" in key}
    gradients = {k: x for k, x in errors.items() if k not in statistics and k != "loss"}
    record_property("loss", f"{errors['loss']:.1e}")
    record_property("gradients", f"{max(gradients.values()):.1e}")
    record_property("statistics", f"{max(statistics.values()):.1e}")
    wrong = {key: x for key, x in errors.items() if not x <= TOLERANCE}
    assert not wrong, wrong


CLASSES = np.array([1, 7, 3, 3])


def test_a_step_of_the_classifier_agrees_with_hugging_face(record_property):
    """On 160x144, whose last map is 5 x 5 (rounded up), so that the rule of odd sizes acts."""
    fields = {"width_multiplier": 0.5, "num_labels": LABELS, "n_attn_blocks": (1, 1, 1)}
    images = reference_images((160, 144), batch=BATCH)
    theirs = huggingface(**fields).double().train()
    loss = theirs(channels_first(images).double(), labels=torch.from_numpy(CLASSES)).loss
    loss.backward()
    model = our_model("classification", **fields, **RULES["huggingface"])
    check(compare(model, images, CLASSES, "hf", theirs, loss.detach()), record_property)


def test_a_step_of_the_classifier_agrees_with_timm(record_property):
    """On 160x144 too, whose last map is resized to 6 x 6."""
    fields = {"width_multiplier": 0.5, "num_labels": LABELS}
    images = reference_images((160, 144), batch=BATCH)
    theirs = timm_model(0.5).double().train()
    logits = theirs(channels_first(images).double())
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(CLASSES))
    loss.backward()
    model = our_model("classification", **fields, **RULES["timm"])
    check(compare(model, images, CLASSES, "timm", theirs, loss.detach()), record_property)


def test_a_step_of_the_segmenter_agrees_with_hugging_face(record_property):
    fields = {
        "width_multiplier": 0.5,
        "num_labels": LABELS,
        "n_attn_blocks": (1, 1, 1),
        "output_stride": 16,
        "aspp_out_channels": 64,
        "aspp_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.0,
    }
    images = reference_images((128, 128), batch=BATCH)
    labels = np.random.RandomState(1).randint(0, LABELS, (BATCH, 128, 128))
    labels[:, :30] = 255
    theirs = huggingface("ForSemanticSegmentation", **fields).double().train()
    loss = theirs(channels_first(images).double(), labels=torch.from_numpy(labels)).loss
    loss.backward()
    model = our_model("segmentation", **fields, **RULES["huggingface"])
    check(compare(model, images, labels, "hf", theirs, loss.detach()), record_property)
