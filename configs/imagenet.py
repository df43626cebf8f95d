r"""MobileViTV2 on ImageNet-1k at 256x256 pixels: the recipe of the original release.

    mobilevitv2 prepare imagenet --train-tar ILSVRC2012_img_train.tar \
        --val-tar ILSVRC2012_img_val.tar --out ~/tensorflow_datasets
    python train.py --config configs/imagenet.py:width=1.0

Widths: 0.5, 0.75, 1.0, 1.25, 1.5, 1.75 and 2.0. The original took 8 A100 and, for width 2.0, about
two days. Where a batch of 1024 does not fit: --config.optimizer.accumulation_steps=8, the same but
for rounding. A cosine by step: --config.schedule.per_epoch=false. BatchNorm over the whole batch:
--config.model.batch_norm_group_size=1024.

Expected, published with the original release (top-1 of the EMA): 70.18, 75.56, 78.09, 79.65, 80.38,
80.84 and 81.17 %, from the narrowest to the widest. See docs/imagenet.md.

Source: ml-cvnets `config/classification/imagenet/mobilevit_v2.yaml`, which is that of width 2.0,
and `docs/source/en/models/classification/README-mobilevit-v2.md` for the others.
"""

from mobilevitv2_jax.config import default_config, parse_arg
from mobilevitv2_jax.errors import ConfigError

# By width: the peak of the learning rate, and the weight decay.
RATES = {
    0.5: (0.0090, 0.004),
    0.75: (0.0090, 0.008),
    1.0: (0.0075, 0.013),
    1.25: (0.0049, 0.020),
    1.5: (0.0035, 0.029),
    1.75: (0.0026, 0.039),
    2.0: (0.0020, 0.050),
}


def get_config(arg=""):
    """Returns the experiment; `arg` may set `width`."""
    width = parse_arg(arg, width=1.0).width
    if width not in RATES:
        raise ConfigError(f"width must be one of {', '.join(map(str, RATES))}, got {width}")
    config = default_config()

    config.model.width_multiplier = width
    config.model.dtype = "bfloat16"  # the original has float16
    config.model.batch_norm_group_size = 128  # the images of each of its 8 GPUs
    config.data.source = "tfds"
    config.data.directory = "~/tensorflow_datasets/imagenet2012"
    config.data.eval_split = "validation"
    config.data.workers = -1  # as many loader processes as the cores allow
    config.data.batch_size = config.eval.batch_size = 1024
    config.data.image_size = config.model.image_size = 256

    config.augment.random_resized_crop = True
    config.augment.horizontal_flip = 0.5
    config.augment.randaugment = 2
    config.augment.random_erasing = 0.25
    config.augment.mixup = 0.2
    config.augment.cutmix = 1.0

    config.schedule.total = "300 epochs"
    config.schedule.warmup = "20000 steps"
    config.schedule.warmup_learning_rate = 1e-6
    config.schedule.learning_rate, config.optimizer.weight_decay = RATES[width]
    config.schedule.min_learning_rate = config.schedule.learning_rate / 10
    config.schedule.per_epoch = True

    config.eval.resize, config.eval.crop = 288, 256
    config.log.every = "100 steps"
    return config.lock()
