"""DeepLabV3-MobileViTV2 on scenes of handwritten digits: nothing to download.

    python train.py --config configs/digits_segmentation.py

Data: 1,200 scenes to train on and 240 held out, composed from scikit-learn's digits over
textured backgrounds (see data/digit_scenes.py); held-out scenes show held-out digits only.

Expected: 78.8, 82.3 and 79.9 % mIoU (EMA) with seeds 0, 1 and 2, in less than eight minutes on
two CPU cores (November 2026).
"""

from mobilevitv2_jax.config import default_config, parse_arg


def get_config(arg=""):
    """Returns the experiment; `arg` may set `width` and `resolution`."""
    arg = parse_arg(arg, width=0.5, resolution=128)
    config = default_config()
    config.task = "segmentation"

    config.model.width_multiplier = arg.width
    config.model.image_size = arg.resolution
    config.model.output_stride = 16
    config.model.aspp_out_channels = 256
    config.data.source = "digit_scenes"
    config.data.batch_size = 16
    config.data.image_size = config.eval.resize = config.eval.crop = arg.resolution

    # The recipe of Pascal VOC, its sizes in proportion.
    config.augment.short_side = (arg.resolution // 2, arg.resolution * 3 // 2)
    config.augment.long_side = 2 * arg.resolution
    config.augment.horizontal_flip = config.augment.blur = config.augment.photometric = 0.5
    config.augment.largest_class = 0.75
    config.augment.rotation = 10.0

    config.schedule.total = "10 epochs"
    config.schedule.warmup = "30 steps"
    config.schedule.learning_rate = 2e-3
    config.schedule.min_learning_rate = 2e-5
    config.ema.momentum = 0.1

    config.eval.every = config.checkpoint.every = "2 epochs"
    config.eval.batch_size = 16
    config.eval.pictures_from = 15
    config.checkpoint.best_metric = "eval_ema_squashed/miou"
    return config.lock()
