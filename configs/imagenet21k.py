r"""Pre-training on ImageNet-21k-P (10,450 classes), and the way back to ImageNet-1k.

    mobilevitv2 prepare folder --source imagenet21k_train --val imagenet21k_val \
        --name imagenet21k_p --out ~/tensorflow_datasets
    python train.py --config configs/imagenet21k.py:width=2.0 --workdir runs/21k \
        --config.init.pretrained=runs/imagenet-width=2.0
    python train.py --config configs/imagenet21k.py:width=2.0,transfer --workdir runs/21k-to-1k \
        --config.init.pretrained=runs/21k

Each begins with the weights of the one before and a new head. The original did so for widths 1.5,
1.75 and 2.0, on 32 A100 there and, by its configuration, on 2 GPUs back (by its text on 4).

Expected, published with the original release (top-1 on ImageNet-1k, EMA): 81.46, 81.94 and 82.36 %.
See docs/imagenet.md, and imagenet_384.py for what comes after.

Source: ml-cvnets `config/classification/imagenet_21k/mobilevit_v2.yaml` and
`config/classification/finetune_in21k_to_1k/mobilevit_v2.yaml`.
"""

from mobilevitv2_jax.config import load, parse_arg
from mobilevitv2_jax.errors import ConfigError

DECAYS = {1.5: 0.029, 1.75: 0.039, 2.0: 0.050}


def get_config(arg=""):
    """Returns the experiment; `arg` may set `width`, and `transfer` for the way back."""
    arg = parse_arg(arg, width=2.0, transfer=False)
    if arg.width not in DECAYS:
        raise ConfigError(f"width must be one of {', '.join(map(str, DECAYS))}, got {arg.width}")
    # Augmentation, smoothing, EMA and evaluation are those of ImageNet-1k.
    config = load("configs/imagenet.py", f"width={arg.width}").unlock()
    config.schedule.warmup = "0 steps"

    if arg.transfer:
        config.data.batch_size = config.eval.batch_size = 256
        config.optimizer.name = "sgd"
        config.optimizer.weight_decay = 4e-5
        config.optimizer.gradient_clip = 0.0
        config.schedule.total = "50 epochs"
        config.schedule.learning_rate, config.schedule.min_learning_rate = 1e-2, 1e-3
    else:
        config.data.directory = "~/tensorflow_datasets/imagenet21k_p"
        config.data.batch_size = config.eval.batch_size = 4096
        config.optimizer.weight_decay = DECAYS[arg.width]
        config.schedule.total = "80 epochs"
        config.schedule.learning_rate, config.schedule.min_learning_rate = 3e-4, 1e-6
    return config.lock()
