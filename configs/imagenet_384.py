r"""A classifier trained at 256x256 pixels, fine-tuned at 384x384 for 10 epochs.

    python train.py --config configs/imagenet_384.py:width=1.0 \
        --config.init.pretrained=runs/imagenet-width=1.0

Starts from weights of ImageNet-1k, also from such as were pre-trained on 21k-P. The original took
2 GPUs.

Expected, published with the original release (top-1 of the EMA): 72.14, 76.98, 79.68, 80.94, 81.50,
82.04 and 82.17 % from the narrowest width to the widest; after 21k-P 82.60, 82.93 and 83.41 % for
1.5, 1.75 and 2.0. See docs/imagenet.md.

Source: ml-cvnets `config/classification/finetune_higher_res_in1k/mobilevit_v2.yaml`.
"""

from mobilevitv2_jax.config import load


def get_config(arg=""):
    """Returns the experiment; `arg` may set `width`."""
    config = load("configs/imagenet.py", arg).unlock()

    config.data.batch_size = config.eval.batch_size = 128
    config.model.batch_norm_group_size = 64  # the images of each of the original's 2 GPUs
    config.data.image_size = config.model.image_size = 384
    config.eval.resize = config.eval.crop = 384

    config.augment.randaugment = 0
    config.augment.random_erasing = config.augment.mixup = config.augment.cutmix = 0.0

    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 4e-5
    config.schedule.total = "10 epochs"
    config.schedule.warmup = "0 steps"
    # A cosine between equal rates is constant.
    config.schedule.learning_rate = config.schedule.min_learning_rate = 1e-3
    config.ema.momentum = 0.00005
    return config.lock()
