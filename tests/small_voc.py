"""Small data sets for segmentation, in the structure in which the real ones are distributed."""

import io
import json
import pathlib

import cv2
import numpy as np
from PIL import Image, ImageDraw
from scipy.io import savemat

from mobilevitv2_jax.evaluation.pictures import palette

SIZES = ((500, 375), (333, 500), (500, 334), (375, 500), (500, 333))
"""Width and height of images, in turn, as they occur in VOC."""


def scene(number, size, classes=(1, 2)):
    """Returns an image and its map: bright objects of some classes on grey, void around them.

    Class c is a disc, a square or a bar in a colour of its own.
    """
    width, height = size
    random = np.random.RandomState(number)
    image = Image.fromarray(random.randint(70, 110, (height, width, 3), np.uint8))
    label = Image.new("L", size)
    for place in range(2):
        kind = classes[(number + place) % len(classes)]
        radius = int(min(size) * random.uniform(0.14, 0.2))
        x = int(width * (0.28 + 0.44 * place) + random.randint(-10, 10))
        y = int(height * random.uniform(0.35, 0.65))
        box = (x - radius, y - radius, x + radius, y + radius)
        colour = tuple(int(level) for level in palette()[kind] // 2 + 120)
        for picture, fill in ((image, colour), (label, kind)):
            draw = ImageDraw.Draw(picture)
            if kind % 2:
                draw.ellipse(box, fill=fill)
            else:
                draw.rectangle(box, fill=fill)
    label = np.array(label)
    band = cv2.dilate(label, np.ones((5, 5), np.uint8)) != cv2.erode(
        label, np.ones((5, 5), np.uint8)
    )
    label[band] = 255
    return np.asarray(image), label


def encode(image, kind, **options):
    """Returns the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def palette_png(label):
    """Returns a map as VOC stores it: a PNG with the palette of the development kit."""
    picture = Image.fromarray(label, "L").convert("P")
    picture.putpalette(palette().tobytes())
    picture.frombytes(label.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write(file, data):
    """Writes a file, and its folders."""
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.write_bytes if isinstance(data, bytes) else file.write_text)(data)


def make_voc(directory, train=6, val=5, scale=1.0):
    """Makes VOCdevkit/VOC2012 and returns the maps by name."""
    root, maps = pathlib.Path(directory) / "VOCdevkit" / "VOC2012", {}
    names = {"train": range(train), "val": range(train, train + val)}
    for split, numbers in names.items():
        listed = [f"2007_{number:06d}" for number in numbers]
        write(root / f"ImageSets/Segmentation/{split}.txt", "\n".join(listed) + "\n")
        for number, name in zip(numbers, listed, strict=True):
            size = tuple(int(side * scale) for side in SIZES[number % len(SIZES)])
            image, maps[name] = scene(number, size)
            write(root / f"JPEGImages/{name}.jpg", encode(image, "JPEG", quality=90))
            write(root / f"SegmentationClass/{name}.png", palette_png(maps[name]))
    write(root / "ImageSets/Segmentation/trainval.txt", "\n".join(sorted(maps)) + "\n")
    return maps


def add_sbd(directory, names, folder="benchmark_RELEASE/dataset"):
    """Adds images with maps as SBD's .mat files, and returns the maps by name."""
    root, maps = pathlib.Path(directory), {}
    for number, name in enumerate(names):
        image, label = scene(100 + number, SIZES[number % len(SIZES)])
        maps[name] = np.where(label == 255, 0, label).astype(np.uint8)
        file = root / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{name}.jpg"
        if not file.exists():
            write(file, encode(image, "JPEG", quality=90))
        buffer = io.BytesIO()
        content = {"Segmentation": maps[name], "CategoriesPresent": np.array([[1], [2]])}
        savemat(buffer, {"GTcls": content}, do_compression=True)
        write(root / folder / f"cls/{name}.mat", buffer.getvalue())
    return maps


def make_ade20k(directory, train=3, val=2):
    """Makes ADEChallengeData2016 with two classes, and returns the stored maps by name."""
    root, maps = pathlib.Path(directory) / "ADEChallengeData2016", {}
    rows = [
        "Idx\tRatio\tTrain\tVal\tStuff\tName",
        "1\t.2\t3\t2\t1\twall",
        "2\t.1\t3\t2\t1\tbuilding, edifice",
    ]
    write(root / "objectInfo150.txt", "\n".join(rows) + "\n")
    for split, short, count in (("training", "train", train), ("validation", "val", val)):
        for number in range(count):
            name = f"ADE_{short}_{number + 1:08d}"
            image, label = scene(number, (200, 160))
            maps[name] = np.where(label == 255, 0, label).astype(np.uint8)
            write(root / f"images/{split}/{name}.jpg", encode(image, "JPEG"))
            write(root / f"annotations/{split}/{name}.png", encode(maps[name], "PNG"))
    return maps


def make_masks(directory, count=10, size=(96, 80)):
    """Makes images/, masks/ and classes.txt, and returns the maps by name."""
    root, maps = pathlib.Path(directory), {}
    write(root / "classes.txt", "background\ndisc\nsquare\n")
    for number in range(count):
        image, maps[f"{number}"] = scene(number, size)
        write(root / f"images/{number}.png", encode(image, "PNG"))
        write(root / f"masks/{number}.png", palette_png(maps[f"{number}"]))
    return maps


def make_coco(directory):
    """Makes a COCO folder of four images: two objects that overlap, a small one, a crowd, none."""
    root = pathlib.Path(directory)

    def square(image, number, category, box, crowd=0):
        left, top, right, bottom = box
        outline = [left, top, right, top, right, bottom, left, bottom]
        return {
            "id": number,
            "image_id": image,
            "category_id": category,
            "iscrowd": crowd,
            "segmentation": [outline],
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
        }

    sizes = {1: (300, 260), 2: (200, 300), 3: (256, 256), 4: (300, 300)}  # width and height
    crowd = square(3, 4, 17, (0, 0, 1, 1), crowd=1)
    columns = np.zeros((256, 256), np.uint8)
    columns[:, 128:] = 1  # stored by columns: 128 x 256 zeros, then as many ones
    crowd["segmentation"] = {"size": [256, 256], "counts": [128 * 256, 128 * 256]}
    annotations = [
        square(1, 1, 1, (20, 30, 120, 130)),  # a person
        square(1, 2, 18, (70, 80, 170, 180)),  # a dog, in part behind the person
        square(1, 3, 13, (200, 200, 220, 220)),  # a stop sign, which VOC does not have
        square(2, 5, 1, (10, 10, 100, 100)),
        crowd,
        square(4, 6, 13, (10, 10, 100, 100)),
    ]
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height}
        for number, (width, height) in sizes.items()
    ]
    for info in images:
        image = np.full((info["height"], info["width"], 3), 90, np.uint8)
        write(root / "train2017" / info["file_name"], encode(image, "JPEG"))
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k} for k in (1, 13, 17, 18)],
    }
    write(root / "annotations/instances_train2017.json", json.dumps(content))
