"""Whole images in groups of one shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_voc import make_voc, write

from mobilevitv2_jax.data.image import resize_aligned
from mobilevitv2_jax.data.loader import planned_batches, survey
from mobilevitv2_jax.data.protocol import Protocol, make_plan
from mobilevitv2_jax.data.segmentation import VOID
from mobilevitv2_jax.data.sources import load_source
from mobilevitv2_jax.models.resize import resize_bilinear

VOC = Protocol(short_side=512, stride=16, interpolation="bicubic")
SMALL = Protocol(short_side=32, stride=16, interpolation="bicubic")


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((375, 500), (512, 672)),  # 512 x 682 first
        ((500, 333), (768, 512)),  # 768 x 512, for 512 * 500 / 333 = 768.8
        ((500, 334), (752, 512)),  # 766 x 512
        ((500, 500), (512, 512)),
    ],
)
def test_an_image_is_resized_to_the_short_side_and_down_to_multiples_of_the_stride(size, shape):
    assert VOC.shapes(size) == (shape,)
    assert VOC.views(np.zeros((*size, 3), np.uint8))[0].shape == (*shape, 3)


def test_resizing_down_keeps_the_corners_and_fractions_of_grey_levels():
    """Tolerance: 1e-4 of 255 levels, products in float32."""
    image = np.random.RandomState(0).randint(0, 256, (23, 31, 3), np.uint8)
    found = resize_aligned(image, (16, 32))
    expected = resize_bilinear(image[None].astype(np.float32), (16, 32), align_corners=True)
    np.testing.assert_allclose(found, expected[0], atol=255e-4)
    np.testing.assert_array_equal(found[[0, -1]][:, [0, -1]], image[[0, -1]][:, [0, -1]])
    assert (found % 1 != 0).any() and found.dtype == np.float32


@given(
    sizes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=20),
    batch_size=st.integers(1, 5),
)
def test_every_example_comes_once_and_batches_are_of_one_shape(sizes, batch_size):
    plan = make_plan(SMALL, sizes, batch_size)
    whole = [index for index, size in enumerate(sizes) if min(size)]
    assert sorted(plan.order[plan.counted]) == whole
    assert len(plan.order) % batch_size == 0
    for start in range(0, len(plan.order), batch_size):
        members = plan.order[start : start + batch_size]
        shapes = {SMALL.shapes(sizes[index]) for index in members}
        assert len(shapes) == 1
        rows, columns = plan.bounds[shapes.pop()]
        assert rows % 32 == 0
        assert all(sizes[i][0] <= rows and sizes[i][1] <= columns for i in members)
    assert len(plan.bounds) == len({SMALL.shapes(sizes[index]) for index in whole})


def batches_of(source, plan, **options):
    options = {"order": plan.order, "counted": plan.counted, "batch_size": 4, **options}
    with planned_batches(source, plan, **options, threads=0) as batches:
        return list(batches)


def test_the_loader_delivers_the_plan_the_same_for_any_number_of_processes():
    scenes = load_source("digit_scenes", "test")
    source = [scenes[index] for index in range(9)]
    seen = []
    sizes, problems = survey(source, over=lambda items: (seen.append(x) or x for x in items))
    assert len(seen) == 9  # it goes on, as a watchdog wants to see
    assert problems == [] and tuple(sizes[3]) == source[3]["label"].shape
    plan = make_plan(Protocol(64, 16, "bilinear", (1.0, 0.5)), sizes, 4)
    alone = batches_of(source, plan)
    assert sum(batch["mask"].sum() for batch in alone) == 9
    for batch in alone:
        for row, index in enumerate(batch["index"]):
            if index < 0:
                assert batch["mask"][row] == 0
                continue
            height, width = batch["size"][row]
            truth = source[int(index)]["label"]
            np.testing.assert_array_equal(batch["label"][row, :height, :width], truth)
            assert (batch["label"][row, height:] == VOID).all()
            assert (batch["label"][row, :, width:] == VOID).all()
        assert [min(batch[name].shape[1:3]) for name in ("image_0", "image_1")] == [64, 32]
    halves = [batches_of(source, plan, process_index=k, process_count=2) for k in range(2)]
    for whole, *parts in zip(alone, *halves, strict=True):
        for name in whole:
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, whole[name])


def test_what_cannot_be_read_is_named_and_left_out_of_the_plan(tmp_path):
    make_voc(tmp_path, train=1, val=3, scale=0.2)
    root = tmp_path / "VOCdevkit/VOC2012"
    write(root / "JPEGImages/2007_000001.jpg", b"no image")
    write(root / "SegmentationClass/2007_000003.png", b"no map")
    sizes, problems = survey(load_source("voc", "val", str(tmp_path)))
    assert [tuple(size) for size in sizes] == [(0, 0), (66, 100), (0, 0)]
    assert len(problems) == 2 and problems[0].startswith("record 0 of voc/val/3")
    assert "2007_000001.jpg" in problems[0] and "2007_000003.png" in problems[1]
    assert make_plan(SMALL, sizes, 1).order.tolist() == [1]
