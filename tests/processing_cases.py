"""Pictures and rules with which the image processor is compared with Hugging Face's."""

import itertools

import numpy as np

SIZES = [(480, 640), (640, 480), (333, 500), (500, 333), (256, 256), (97, 301), (1, 7), (700, 256)]
RULES = {
    "class defaults": {},
    "published classifiers": {"size": {"shortest_edge": 288}, "resample": 2},
    "published segmenters": {"size": {"shortest_edge": 544}, "crop_size": 512, "resample": 2},
    "timm": {"size": 288, "resample": 3, "do_flip_channel_order": False},
    "long side": {"size": {"shortest_edge": 100, "longest_edge": 120}, "do_center_crop": False},
    "squashed": {"size": {"height": 70, "width": 50}, "do_center_crop": False, "resample": 1},
    "crop alone": {"do_resize": False, "crop_size": {"height": 200, "width": 311}},
    "bytes": {"do_rescale": False, "size": {"shortest_edge": 64}, "resample": 0},
}

# Small enough to be stored whole.
SMALL = {
    "cropped": {"size": {"shortest_edge": 36}, "crop_size": 32},
    "padded": {"size": {"shortest_edge": 28}, "crop_size": 32},
}
GOLDEN = {
    f"{name}/{resample}/{size[0]}x{size[1]}": (size, {**rules, "resample": resample})
    for (name, rules), resample, size in itertools.product(
        SMALL.items(), (2, 3), ((480, 640), (97, 61), (20, 33))
    )
}


def picture(size):
    """Returns an image of waves and noise."""
    height, width = size
    random = np.random.RandomState(0)
    rows, columns, channels = np.ogrid[:height, :width, :3]
    waves = (rows * (1 + channels) // 3 + columns * (3 - channels) // 2) % 200
    return (waves + random.randint(0, 56, (height, width, 3))).astype(np.uint8)
