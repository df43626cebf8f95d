"""DeepLabV3- or PSPNet-MobileViTV2 on your own images and masks.

    python train.py --config configs/masks.py:PATH
    python train.py --config configs/masks.py:PATH,width=0.5,resolution=256 --dry-run

PATH holds images/, masks/ (a PNG of the same name for each image: the class of every pixel, 255
for none) and classes.txt (a name in each line, from class 0 on); train.txt and val.txt if you want
to say yourself what is held out, a fifth otherwise. See docs/segmentation.md.

The augmentation is that of Pascal VOC, its sizes in proportion to `resolution`. The learning rate
and the length suit some hundreds to some thousands of images; no figure is expected.
"""

from mobilevitv2_jax.config import default_config, parse_arg


def get_config(arg=""):
    """Returns the experiment of `arg`, PATH[,head=…][,width=…][,resolution=…]."""
    arg = parse_arg(arg, bare="path", path="", head="deeplabv3", width=1.0, resolution=512)
    config = default_config()
    config.task = "segmentation"

    config.model.width_multiplier = arg.width
    config.model.segmentation_head = arg.head
    config.model.output_stride = 16
    config.model.auxiliary_head = config.model.align_corners = True
    config.data.source = "masks"
    config.data.directory = arg.path
    config.data.train_split, config.data.eval_split = "train", "val"
    config.data.batch_size = 16
    config.data.image_size = config.model.image_size = arg.resolution

    config.augment.short_side = (arg.resolution // 2, arg.resolution * 3 // 2)
    config.augment.long_side = arg.resolution * 2
    config.augment.horizontal_flip = config.augment.blur = config.augment.photometric = 0.5
    config.augment.largest_class = 0.75
    config.augment.rotation = 10.0

    config.schedule.total = "60 epochs"
    config.schedule.warmup = "2 epochs"
    config.schedule.learning_rate, config.schedule.min_learning_rate = 5e-4, 1e-6
    config.ema.momentum = 0.01  # the average spans some 100 steps

    config.eval.every = config.checkpoint.every = "5 epochs"
    config.eval.resize = config.eval.crop = arg.resolution
    config.eval.batch_size = 8
    config.eval.pictures_from = 15
    config.checkpoint.best_metric = "eval_ema_squashed/miou"
    return config.lock()
