"""What we save, the peers load strictly and compute alike; what they save, we read to the bit."""

import io
import json
import urllib.request

import numpy as np
import pytest
from flax import nnx
from oracle.comparison import error, timm
from PIL import Image
from reference_torch import channels_first, huggingface, state_of, torch, transformers
from reference_weights import reference_images, reference_weights, shapes_of

import mobilevitv2_jax as mv
from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models.config import WIDTHS
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.weights import images, pretrained, tensors

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-5  # of the largest absolute logit: the limit of all comparisons in float32

CLASSIFIER, SEGMENTER = mv.MobileViTV2ForImageClassification, mv.MobileViTV2ForSemanticSegmentation


def run(model, pixels):
    """Returns our logits, compiled."""
    graph, state = nnx.split(model)
    with_precision = nnx.jit(lambda model, x: model(x).logits)
    return np.asarray(with_precision(nnx.merge(graph, state), pixels))


def without_counters(arrays):
    return {key: x for key, x in arrays.items() if not key.endswith("num_batches_tracked")}


def assert_bits(theirs, ours):
    assert theirs.keys() == ours.keys()
    for key, x in without_counters(theirs).items():
        assert np.asarray(x).dtype == np.asarray(ours[key]).dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(ours[key]), err_msg=key)
    for key in theirs.keys() - without_counters(theirs).keys():
        assert int(ours[key]) == 0


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("ForImageClassification", {}),
        ("ForSemanticSegmentation", {"output_stride": 16, "aspp_out_channels": 64}),
        ("Model", {}),
    ],
)
def test_transformers_loads_what_we_save_strictly_and_gives_our_outputs(kind, fields, tmp_path):
    """Under its own rules, at a size that the patch does not divide. Tolerance: see above."""
    rules = {"dilation_rule": "huggingface", "odd_size_rule": "drop"}
    config = mv.MobileViTV2Config(width_multiplier=0.5, num_labels=5, **fields, **rules)
    model = getattr(mv, f"MobileViTV2{kind}")(config, rngs=Blank())
    arrays = reference_weights(shapes_of(mv.weights.state_dict(model)))
    mv.weights.load_state_dict(model, arrays)
    model.eval()
    model.save_pretrained(tmp_path)
    theirs, report = getattr(transformers, f"MobileViTV2{kind}").from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    theirs.eval()
    bare = getattr(transformers, f"MobileViTV2{kind}")(
        transformers.MobileViTV2Config.from_pretrained(tmp_path)
    )
    bare.load_state_dict(theirs.state_dict(), strict=True)
    assert_bits(arrays, state_of(theirs))
    pixels = reference_images((160, 144))
    with torch.no_grad():
        expected = theirs(channels_first(pixels))
    if kind == "Model":
        ours = np.asarray(nnx.jit(lambda m, x: m(x).pooler_output)(model, pixels))
        assert error(ours, expected.pooler_output.numpy()) <= TOLERANCE
        return
    expected = expected.logits.numpy()
    if kind == "ForSemanticSegmentation":
        expected = expected.transpose(0, 2, 3, 1)
    assert error(run(model, pixels), expected) <= TOLERANCE


@pytest.mark.parametrize("stride", [32, 16])
def test_timm_loads_what_we_save_strictly_and_gives_our_logits(stride, tmp_path):
    """Under its own rules, at a size that the patch does not divide. Tolerance: see above."""
    model = mv.create_model("mobilevitv2_050", id2label={0: "a", 1: "b"}, output_stride=stride)
    arrays = reference_weights(shapes_of(mv.weights.state_dict(model)))
    mv.weights.load_state_dict(model, arrays)
    model.eval()
    model.save_pretrained(tmp_path, format="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    saved = tensors.read(tmp_path / "model.safetensors")
    theirs.load_state_dict(
        {k: torch.from_numpy(np.array(x)) for k, x in saved.items()}, strict=True
    )
    assert_bits(saved, state_of(theirs))
    assert theirs.pretrained_cfg["label_names"] == ["a", "b"]
    data = timm.data.resolve_model_data_config(theirs)
    transform = timm.data.create_transform(**data, is_training=False)
    assert transform.transforms[0].size == 288 and tuple(transform.transforms[1].size) == (256, 256)
    pixels = reference_images((160, 144))
    with torch.no_grad():
        expected = theirs(channels_first(pixels)).numpy()
    assert error(run(model, pixels), expected) <= TOLERANCE


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_goes_from_torch_to_ours_and_back_to_the_bit(width, tmp_path):
    """Classification (Hugging Face, timm), DeepLabV3 (Hugging Face) and PSPNet (ml-cvnets)."""
    for kind, fields in (
        ("ForImageClassification", {}),
        ("ForSemanticSegmentation", {"output_stride": 16}),
    ):
        theirs = huggingface(kind, width_multiplier=width, num_labels=21, **fields)
        place = tmp_path / kind
        theirs.config.save_pretrained(place)
        torch.save(theirs.state_dict(), place / "pytorch_model.bin")
        ours = pretrained.load(place)
        assert type(ours.model).__name__ == type(theirs).__name__
        assert ours.model.config.dilation_rule == "huggingface"
        ours.model.save_pretrained(tmp_path / f"{kind}-back")
        back = type(theirs).from_pretrained(tmp_path / f"{kind}-back")
        assert_bits(state_of(theirs), state_of(back))

    name = f"mobilevitv2_{round(100 * width):03d}"
    arrays = mv.weights.state_dict(
        CLASSIFIER.from_pretrained(tmp_path / "ForImageClassification"), "timm"
    )
    theirs = timm.create_model(name, num_classes=21).eval()
    theirs.load_state_dict({key: torch.from_numpy(x) for key, x in arrays.items()})
    torch.save(theirs.state_dict(), tmp_path / "timm.bin")
    ours = pretrained.load(tmp_path / "timm.bin")
    assert ours.model.config.width_multiplier == width
    ours.model.save_pretrained(tmp_path / "timm", format="timm")
    back = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert_bits(state_of(theirs), state_of(back))

    model = mv.create_model(f"pspnet_{name}", auxiliary_head=True)
    shapes = shapes_of(mv.weights.state_dict(model, "cvnets"))
    arrays = {key: torch.from_numpy(x) for key, x in reference_weights(shapes).items()}
    torch.save(arrays, tmp_path / "pspnet.pt")
    ours = pretrained.load(tmp_path / "pspnet.pt")
    assert ours.model.config.segmentation_head == "pspnet" and ours.model.config.auxiliary_head
    ours.model.save_pretrained(tmp_path / "pspnet", format="cvnets")
    back = torch.load(tmp_path / "pspnet" / "model.pt", weights_only=True)
    assert_bits(
        {key: x.numpy() for key, x in arrays.items()}, {k: x.numpy() for k, x in back.items()}
    )


def test_a_directory_of_timms_own_is_read_with_its_rules(tmp_path):
    theirs = timm.create_model("mobilevitv2_075", num_classes=7, in_chans=3)
    timm.models.save_for_hf(theirs, tmp_path)
    found = pretrained.load(tmp_path)
    assert_bits(state_of(theirs), mv.weights.state_dict(found.model, "timm"))
    assert found.model.config.width_multiplier == 0.75
    assert (found.model.config.dilation_rule, found.model.config.odd_size_rule) == (
        "cvnets",
        "resize",
    )
    assert found.stored.preprocessor == images.rules(288, 256, "bicubic")


def test_torch_reads_hugging_face_s_shards_and_so_do_we(tmp_path):
    theirs = huggingface(width_multiplier=0.5, num_labels=5)
    theirs.save_pretrained(tmp_path, max_shard_size="1MB")
    assert "weight_map" in json.loads((tmp_path / "model.safetensors.index.json").read_text())
    model = CLASSIFIER.from_pretrained(tmp_path)
    assert_bits(state_of(theirs), mv.weights.state_dict(model))


# ---- Where weights are reachable -------------------------------------------------------------

PUBLISHED = {
    "apple/mobilevitv2-1.0-imagenet1k-256": np.array([-1.6336e00, -7.3204e-02, -5.1883e-01]),
    "shehan97/mobilevitv2-1.0-voc-deeplabv3": np.array(
        [
            [[7.0863, 7.1525, 6.8201], [6.6931, 6.8770, 6.8933], [6.2978, 7.0366, 6.9636]],
            [[-3.7134, -3.6712, -3.6675], [-3.5825, -3.3549, -3.4777], [-3.3435, -3.3979, -3.2857]],
            [[-2.9329, -2.8003, -2.7369], [-3.0564, -2.4780, -2.0207], [-2.6889, -1.9298, -1.7640]],
        ]
    ),
    "apple/mobilevitv2-1.0-voc-deeplabv3": None,  # no values were published
}


@pytest.mark.parametrize("identifier", PUBLISHED)
def test_the_official_checkpoints_give_the_published_values(identifier, monkeypatch):
    """Under Hugging Face's rules. Values and tolerance: transformers' own integration tests."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "5")
    url = "http://images.cocodataset.org/val2017/000000039769.jpg"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            picture = Image.open(io.BytesIO(response.read()))
        found = pretrained.load(identifier)
    except (OSError, WeightsError) as error:
        pytest.skip(f"not reachable: {error}")
    processor = mv.MobileViTImageProcessor.from_pretrained(identifier)
    logits = run(found.model, processor(picture)["pixel_values"])
    if logits.ndim == 2:
        assert logits.shape == (1, 1000)
        np.testing.assert_allclose(logits[0, :3], PUBLISHED[identifier], rtol=2e-4, atol=2e-4)
        return
    assert logits.shape == (1, 32, 32, 21)
    if PUBLISHED[identifier] is not None:
        corner = logits[0, :3, :3, :3].transpose(2, 0, 1)
        np.testing.assert_allclose(corner, PUBLISHED[identifier], rtol=2e-4, atol=2e-4)
