r"""DeepLabV3- or PSPNet-MobileViTV2 on ADE20K, 150 classes: the recipe of the original release.

    mobilevitv2 prepare ade20k --source ADEChallengeData2016 --out ~/tensorflow_datasets
    python train.py --config configs/ade20k.py:width=1.0
    python eval.py --workdir runs/ade20k-width=1.0 --best

Or read the archive where it is: --config.data.directory=ADEChallengeData2016. Heads, widths and
where it starts: see configs/voc.py. The original took 4 GPUs.

Expected, published with the original release (mIoU on validation, widths 0.5 to 2.0): DeepLabV3
31.93, 34.70, 37.06, 38.42, 38.91, 39.53 and 40.94 %; PSPNet 31.77, 35.22, 36.57, 38.76, 38.74 and
39.82 % up to 1.75. See docs/segmentation.md.

Source: ml-cvnets `config/segmentation/ade20k/{deeplabv3,pspnet}_mobilevitv2.yaml`.
"""

from mobilevitv2_jax.config import default_config, parse_arg


def get_config(arg=""):
    """Returns the experiment; `arg` may set `head`, `width` and `output_stride`."""
    arg = parse_arg(arg, head="deeplabv3", width=1.0, output_stride=8)
    config = default_config()
    config.task = "segmentation"

    config.model.width_multiplier = arg.width
    config.model.segmentation_head = arg.head
    config.model.output_stride = arg.output_stride
    config.model.atrous_rates = (12, 24, 36)
    config.model.auxiliary_head = config.model.align_corners = True
    config.model.aspp_dropout_prob = 0.0  # the original drops whole channels alone
    config.model.dtype = "bfloat16"  # the original has float16
    config.data.source = "ade20k"
    config.data.directory = "~/tensorflow_datasets/ade20k_150"
    config.data.train_split, config.data.eval_split = "training", "validation"
    config.data.batch_size = 16
    config.data.image_size = config.model.image_size = 512

    config.augment.horizontal_flip = config.augment.blur = config.augment.photometric = 0.5
    config.augment.largest_class = 0.75
    config.augment.rotation = 10.0

    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 1e-4
    config.schedule.total = "120 epochs"
    config.schedule.learning_rate, config.schedule.min_learning_rate = 2e-2, 2e-4
    config.schedule.per_epoch = True

    config.eval.every = config.checkpoint.every = "5 epochs"
    config.eval.resize = config.eval.crop = 512
    config.eval.batch_size = 16
    config.eval.pictures_from = 15
    config.checkpoint.best_metric = "eval_ema_squashed/miou"
    return config.lock()
