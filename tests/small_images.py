"""Small images in files and in data sets, for the tests of what reads and prepares data."""

import dataclasses
import functools
import io
import tarfile

import cv2
import numpy as np
from PIL import Image

from mobilevitv2_jax.data import array_record, examples
from mobilevitv2_jax.data.image import CorruptError


def noise(seed, size=(12, 16)):
    """Returns an RGB image, always the same for a seed."""
    return np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)


def encoded(seed, extension=".jpg", size=(12, 16)):
    """Returns the bytes of `noise` in a file."""
    return cv2.imencode(extension, noise(seed, size)[..., ::-1])[1].tobytes()


def make_folders(root, counts):
    """Writes JPEGs of noise: `{"train/cat": 3}` makes three in the folder train/cat."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for image in range(count):
            (root / folder / f"{image}.jpg").write_bytes(encoded(100 * number + image))


@dataclasses.dataclass(frozen=True)
class NoiseExamples:
    """Examples to be written: JPEGs of noise with one of five classes; some are damaged."""

    length: int
    corrupt: tuple = ()
    fingerprint: str = "noise"
    num_bytes: int = 1000

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.corrupt:
            raise CorruptError(f"number {index} is damaged")
        values = {"image": io.BytesIO(encoded(index)), "label": index % 5, "file_name": f"{index}"}
        return examples.Record(values, "number 3 is odd" if index == 3 else "")


NOISE = examples.Description(
    name="noise",
    version="1.0.0",
    features=functools.partial(examples.classification_features, tuple("abcde")),
    text="Noise.",
)


def write_noise(data_dir, splits, **options):
    """Writes a set of noise in shards of about 500 bytes as they are estimated."""
    options = {"processes": 0, "tell": lambda progress: None, "shard_bytes": 500, **options}
    return array_record.write(NOISE, splits, data_dir, **options)


def cmyk(seed, size=(12, 16)):
    """Returns a CMYK JPEG as Photoshop writes it: with inverted inks."""
    buffer = io.BytesIO()
    Image.fromarray(noise(seed, size)).convert("CMYK").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def tar(members):
    """Returns an archive of `{name: bytes}`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
