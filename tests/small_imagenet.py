"""Archives with the structure of ILSVRC2012's, with few and small images of noise."""

from small_images import encoded, tar

from mobilevitv2_jax.data import imagenet


def train_images(per_class=2, classes=1000, size=(12, 16)):
    """Returns the files of each class: `{"n01440764": {"n01440764_0.JPEG": bytes}}`."""
    return {
        name: {
            f"{name}_{number}.JPEG": encoded(1000 * label + number, size=size)
            for number in range(per_class)
        }
        for label, name in enumerate(imagenet.class_names()[:classes])
    }


def write_train(path, images):
    """Writes the archive of class archives; its order of classes is not that of the labels."""
    ordered = sorted(images, key=lambda name: name[::-1])
    path.write_bytes(tar({f"{name}.tar": tar(images[name]) for name in ordered}))


def validation_images(count=20, size=(12, 16)):
    """Returns the first files of the flat archive."""
    return {
        f"ILSVRC2012_val_{number:08d}.JPEG": encoded(7_000_000 + number, size=size)
        for number in range(1, count + 1)
    }


def write_validation(path, images):
    """Writes the flat archive, not in the order of the names."""
    path.write_bytes(tar(dict(sorted(images.items(), key=lambda item: item[0][::-1]))))
