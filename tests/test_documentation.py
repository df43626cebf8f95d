"""The examples of the documentation give what they promise."""

import doctest
import pathlib
import re

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from processing_cases import picture

import mobilevitv2_jax as mv
from mobilevitv2_jax import class_names
from mobilevitv2_jax.models import functional

DOCS = pathlib.Path(__file__).parents[1] / "docs"
TABBY = 281


def write_checkpoint(directory, cls, winner, size, crop, **fields):
    """Writes a checkpoint like Hugging Face's published ones, which finds one class everywhere."""
    model = cls(mv.MobileViTV2Config(**fields), rngs=nnx.Rngs(0))
    functional.update(
        model, {winner[0]: np.float32(100 * (np.arange(len(fields["id2label"])) == winner[1]))}
    )
    processor = mv.MobileViTImageProcessor(size=size, crop_size=crop, resample=2)
    model.save_pretrained(directory, processor=processor)


def examples(path):
    """Returns the interactive examples of a page, without the fences around them."""
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    return "\n".join(block for block in blocks if block.startswith(">>>"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of rules that Hugging Face does not have
def test_hugging_face_s_examples_work_with_our_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture((480, 640))).save("cats.jpg")
    labels = dict(enumerate(class_names.load("imagenet1k")))
    write_checkpoint(
        "mobilevitv2-1.0-imagenet1k-256",
        mv.MobileViTV2ForImageClassification,
        ("classifier.bias", TABBY),
        288,
        256,
        id2label=labels,
    )
    write_checkpoint(
        "mobilevitv2-1.0-voc-deeplabv3",
        mv.MobileViTV2ForSemanticSegmentation,
        ("segmentation_head.classifier.bias", 8),
        544,
        512,
        output_stride=16,
        id2label=dict(enumerate(class_names.load("voc"))),
    )
    text = examples(DOCS / "predict.md")
    test = doctest.DocTestParser().get_doctest(text, {}, "docs/predict.md", None, 0)
    assert len(test.examples) > 20
    report: list[str] = []
    outcome = doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
    assert outcome.failed == 0, "".join(report)
