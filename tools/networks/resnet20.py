"""ResNet-20 on the CIFAR-10 subset: 256 calibration images, the same as those of `nabn test cifar10`."""

from __future__ import annotations

from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, Workload
from aihwkit_nabn.workloads.cifar10 import FOLDER, IMAGES, WEIGHTS, build
from networks._base import NETWORKS, NetworkKind, Options, need_data
from networks._classifier import chosen, classifier

REQUEST = CalibrationRequest(n=256, batch_size=64)


def require(options: Options) -> None:
    """Check that network and images are there."""
    need_data(options, f"{FOLDER}/{IMAGES}", f"{FOLDER}/{WEIGHTS}")


def load(options: Options) -> Workload:
    """Return the network; ``train`` measures on as many training images as there are test images."""
    found = build(LoadSettings(seed=options.seed), options.data_root)
    order = choose(len(found.train.labels), None, derive_seed(options.seed, "calibration images"))
    images, numbers = found.test, choose(len(found.test.labels), None, options.seed)
    if options.split == "train":
        images, numbers = found.train, order[REQUEST.n :][: len(numbers)]
    return classifier(
        found.model,
        calibration=found.train,
        numbers=order,
        seed=options.seed,
        tested=chosen(images, numbers[: options.test_images]),
    )


NETWORKS.register("resnet20")(NetworkKind(require=require, load=load, request=REQUEST))
