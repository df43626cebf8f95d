r"""DeepLabV3- or PSPNet-MobileViTV2 on Pascal VOC 2012: the recipe of the original release.

    mobilevitv2 prepare voc --source VOCdevkit --sbd benchmark_RELEASE --coco coco2017 \
        --out ~/tensorflow_datasets
    python train.py --config configs/voc.py:width=1.0,coco
    python eval.py --workdir runs/voc-width=1.0,coco --best    # or what the training prints

Heads: deeplabv3 and pspnet; widths 0.5 to 2.0; output strides 16 (as published) and 8. Without
`coco` it trains on the 10,582 images of trainaug alone, and --config.data.directory=VOCdevkit
reads the kit where it is. The original starts from its ImageNet-1k weights and took 4 GPUs; where
128 images do not fit: --config.optimizer.accumulation_steps=4, with which BatchNorm sees 32.

Expected, published with the original release and trained with COCO (mIoU on val): DeepLabV3 75.07,
78.94, 79.68 and 80.30 % at widths 0.5, 1.0, 1.25 and 1.5; PSPNet 74.62, 77.44, 78.92, 79.40 and
79.93 % at 0.5 to 1.5. Without COCO no figure was published. See docs/segmentation.md.

Source: ml-cvnets `config/segmentation/pascal_voc/{deeplabv3,pspnet}_mobilevitv2.yaml`.
"""

from mobilevitv2_jax.config import default_config, parse_arg


def get_config(arg=""):
    """Returns the experiment; `arg` may set `head`, `width`, `output_stride` and `coco`."""
    arg = parse_arg(arg, head="deeplabv3", width=1.0, output_stride=16, coco=False)
    config = default_config()
    config.task = "segmentation"

    config.model.width_multiplier = arg.width
    config.model.segmentation_head = arg.head
    config.model.output_stride = arg.output_stride
    config.model.auxiliary_head = config.model.align_corners = True
    config.model.aspp_dropout_prob = 0.0  # the original drops whole channels alone
    config.model.dtype = "bfloat16"  # the original has float16
    config.data.source = "voc"
    config.data.directory = "~/tensorflow_datasets/voc2012_segmentation"
    config.data.train_split = "trainaug+coco" if arg.coco else "trainaug"
    config.data.eval_split = "val"
    config.data.batch_size = 128
    config.data.image_size = config.model.image_size = 512

    config.augment.horizontal_flip = config.augment.blur = config.augment.photometric = 0.5
    config.augment.largest_class = 0.75
    config.augment.rotation = 10.0

    config.schedule.total = "50 epochs"
    config.schedule.warmup = "500 steps"
    config.schedule.warmup_learning_rate = 5e-5
    config.schedule.learning_rate, config.schedule.min_learning_rate = 5e-4, 1e-6
    config.schedule.per_epoch = True

    config.eval.resize = config.eval.crop = 512
    config.eval.batch_size = 16
    config.eval.pictures_from = 15
    config.checkpoint.best_metric = "eval_ema_squashed/miou"
    return config.lock()
