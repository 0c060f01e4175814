"""ResNet-20 on the CIFAR-10 subset: 256 calibration images, the same as those of `evaluate_cifar10.py`."""

from __future__ import annotations

from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.sweeps.models import MODELS
from aihwkit_nabn.sweeps.models.cifar10 import FOLDER
from networks._base import NETWORKS, Network, NetworkKind, Options, need_data
from networks._classifier import chosen, classifier

IMAGES = 256
BATCH = 64


def require(options: Options) -> None:
    """Check that network and images are there."""
    need_data(options, f"{FOLDER}/cifar10_subset.npz", f"{FOLDER}/resnet20_cifar10.pth")


def load(options: Options) -> Network:
    """Return the network; ``train`` measures on as many training images as there are test images."""
    bench = MODELS.get("cifar10").load("", {"data_root": str(options.data_root)})
    order = choose(len(bench.train.labels), None, derive_seed(options.seed, "calibration images"))
    images, numbers = bench.test, choose(len(bench.test.labels), None, options.seed)
    if options.split == "train":
        images, numbers = bench.train, order[IMAGES : IMAGES + len(numbers)]
    return classifier(
        bench.model,
        calibration=bench.train,
        numbers=order[:IMAGES],
        batch_size=BATCH,
        seed=options.seed,
        tested=chosen(images, numbers[: options.test_images]),
    )


NETWORKS.register("resnet20")(NetworkKind(require=require, load=load))
