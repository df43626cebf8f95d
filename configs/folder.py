"""MobileViTV2 on a folder of your own images, one folder inside it for each class.

    python train.py --config configs/folder.py:PATH
    python train.py --config configs/folder.py:PATH,width=0.5,resolution=128

PATH holds `train/` and `val/`, or the folders of the classes themselves, of which a fifth is held
out then, always the same files; or a list of paths and labels, `train.csv` and `val.csv`. See
data/folder.py, and docs/finetune.md for how to start from trained weights.

The values suit some hundred to some ten thousand images: batches of 32, 30 epochs with a low
learning rate, mild crops, flips, and an average of the weights that spans the last 10 steps.
"""

from mobilevitv2_jax.config import default_config, parse_arg
from mobilevitv2_jax.training.sweep.points import axis, product


def get_config(arg=""):
    """Returns the experiment; `arg` is the path, and may set `width` and `resolution`."""
    arg = parse_arg(arg, bare="path", path="", width=1.0, resolution=256)
    config = default_config()

    config.model.width_multiplier = arg.width
    config.model.image_size = arg.resolution
    config.data.source = "folder"
    config.data.directory = arg.path
    config.data.eval_split = "val"
    config.data.batch_size = config.eval.batch_size = 32
    config.data.image_size = config.eval.crop = arg.resolution
    config.data.workers = -1  # as many as the cores allow
    config.eval.resize = arg.resolution * 9 // 8  # 288 for 256, as in the published evaluation

    config.augment.random_resized_crop = True
    config.augment.scale = (0.35, 1.0)
    config.augment.horizontal_flip = 0.5

    config.schedule.total = "30 epochs"
    config.schedule.warmup = "1 epochs"
    config.schedule.learning_rate = 5e-4
    config.schedule.min_learning_rate = 5e-6
    config.ema.momentum = 0.1  # the average spans the last 10 steps: small sets have few
    return config.lock()


def sweep():
    """Returns three learning rates with two seeds each."""
    return product(axis("schedule.learning_rate", (2e-4, 5e-4, 1e-3)), axis("seed", range(2)))
