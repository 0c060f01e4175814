"""``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME``: a model, or a whole workload, that a function of the user's returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from aihwkit_nabn.data.image_folder import open_image_folder
from aihwkit_nabn.errors import NabnError, suggestion
from aihwkit_nabn.extension import UserObject
from aihwkit_nabn.seeding import check_seed, derive_seed, private_rng
from aihwkit_nabn.workloads._base import CHECKPOINT, WORKLOADS, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._checks import check_arguments, check_text
from aihwkit_nabn.workloads._folder import RANDOM, check_device, folder_workload, take_weights
from aihwkit_nabn.workloads._image_input import IMAGE_OPTIONS, ImageInput
from aihwkit_nabn.workloads.torchvision import image_input_of

CLASSES = "num_classes"
# What a function is given where it has a parameter of the name.
_PASSED = (CHECKPOINT, "data", "image_size", "device", "settings", CLASSES)
_TEXTS = {
    CHECKPOINT: "WEIGHTS",
    "data": "--data FOLDER",
    "image_size": "--image-size",
    CLASSES: f"--model-arg {CLASSES}=VALUE (with --data its class folders are counted)",
}


def load_function(
    name: str, settings: LoadSettings, *, model_args: Mapping[str, Any] | None = None, **options: Any
) -> Workload:
    """Return what a function of the user's builds: a workload, or a classifier with the images of a folder.

    The function is called with `model_args` and, where it has parameters of these names, with ``checkpoint``, ``data``,
    ``image_size`` and ``device`` as the user gave them, ``settings`` (`LoadSettings`), and ``num_classes``, the number
    of class folders. A `Workload` is taken as it is. Into a `torch.nn.Module` the weights of `checkpoint` are loaded,
    unless the function takes a `checkpoint` itself; images are normalised as the user says, else as the model's own
    configuration does (timm's ``pretrained_cfg``), else as torchvision does for the weights, else as is usual for
    ImageNet.

    Args:
        name: The function, as `UserObject` takes it; a class, or a model that is there already, will do too.
        settings: How much of the data.
        model_args: Arguments of the function.
        options: ``checkpoint``, a file with the weights or ``"random"``; ``data``, the folder with
            ``train/CLASS/images`` and ``val/CLASS/images``; ``take`` and ``device`` as for torchvision's models;
            ``image_size``, ``crop_pct``, ``mean``, ``std`` and ``interpolation``, see `ImageInput`.

    Raises:
        NabnError: the function fails or returns something else, an argument is missing or unknown, or weights, images
            and model do not fit each other.
    """
    check_seed("seed", settings.seed)
    device = check_device(options.get("device", "cpu"))
    code = UserObject(name)
    built, taken = _built(code, model_args or {}, {**options, "settings": settings}, settings.seed)
    setup = {
        "code": f"{name} {code.digest()}",
        "model_args": {key: repr(value) for key, value in (model_args or {}).items()},
    }
    if isinstance(built, Workload):
        _check_all_used(name, options, settings, taken)
        facts = {**built.facts, "setup": {**built.facts.get("setup", {}), **setup}}
        built.model.eval()
        return replace(built, facts=facts, description=built.description or (f"{name}: a workload of your own",))
    if "data" not in options:
        raise NabnError(
            f"{name} returns a model, which needs data: the folder with train/CLASS/images and val/CLASS/images; "
            "a function that returns a Workload brings its own"
        )
    data, checkpoint = options["data"], options.get(CHECKPOINT)
    folder = open_image_folder(data)
    images = ImageInput.carried_by(built, options.get("image_size")) or image_input_of(checkpoint or "") or ImageInput()
    images = images.changed(**{key: options[key] for key in IMAGE_OPTIONS if key in options})
    notes, origin = [], f"{checkpoint}"
    if checkpoint is None:
        origin = "weights as the function returns them"
    elif checkpoint == RANDOM:
        origin = "random weights"
    elif CHECKPOINT not in taken:
        notes = take_weights(built, checkpoint, len(folder.classes), data, take=options.get("take"))
    return folder_workload(
        built,
        folder,
        images,
        settings,
        title=f"{name} ({origin})",
        data=data,
        device=device,
        notes=[*notes, str(images)],
        setup={**setup, "images": str(images)},
    )


def build_function(name: str, *, model_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Return the model that a function of the user's builds, or that of its workload, in eval mode.

    Raises:
        NabnError: as for `load_function`.
    """
    built, _ = _built(UserObject(name), model_args or {}, {"settings": LoadSettings()}, 0)
    return (built.model if isinstance(built, Workload) else built).eval()


def _built(
    code: UserObject, model_args: Mapping[str, Any], given: Mapping[str, Any], seed: int
) -> tuple[nn.Module | Workload, set[str]]:
    """Return what a function returns, and the names of what it was given besides its own arguments."""
    if isinstance(code.found, (nn.Module, Workload)):
        if model_args:
            raise NabnError(f"{code.text} is a {type(code.found).__name__}, no function; it takes no model_args")
        return code.found, set()
    if not callable(code.found):
        raise NabnError(f"{code.text} must be a function that returns a torch.nn.Module, got {code.found!r}")
    arguments = _arguments(code, model_args, given)
    with private_rng(derive_seed(seed, "weights"), torch_only=False):
        built = code(**arguments)
    if not isinstance(built, (nn.Module, Workload)):
        returned = (
            f"the class {built.__name__}" if isinstance(built, type) else f"{type(built).__name__}: {built!r:.80}"
        )
        raise NabnError(f"{code.text} must return a torch.nn.Module or a Workload, got {returned}")
    return built, set(arguments) - set(model_args)


def _arguments(code: UserObject, model_args: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a function is called with."""
    try:
        parameters = inspect.signature(code.found).parameters
    except (ValueError, TypeError):  # written in C
        return dict(model_args)
    named = [name for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for name in model_args:
        if name not in named and not takes_any:
            raise NabnError(
                f"{code.text} takes no {name}{suggestion(name, named)}; it takes {', '.join(named) or 'no arguments'}"
            )
    found = {name: given[name] for name in _PASSED if name in named and name in given}
    if CLASSES in named and CLASSES not in model_args and "data" in given and "data" not in named:
        found[CLASSES] = len(open_image_folder(given["data"]).classes)
    found |= model_args
    missing = [name for name in named if parameters[name].default is inspect.Parameter.empty and name not in found]
    if missing:
        options = ", ".join(_TEXTS.get(name, f"--model-arg {name}=VALUE") for name in missing)
        raise NabnError(f"{code.text} needs {', '.join(missing)}: give {options}")
    return found


def _check_all_used(name: str, options: Mapping[str, Any], settings: LoadSettings, taken: set[str]) -> None:
    """Raise where a workload leaves out what the user asked for."""
    asked = {"settings"} if any((settings.test_images, settings.batch_size, settings.loader_workers)) else set()
    for option in sorted({*options, *asked} - taken):
        what = "test_images, batch_size or loader_workers" if option == "settings" else option
        raise NabnError(
            f"{name} returns a Workload and takes no {what}: give the function a parameter {option!r}"
            f"{'' if option in _PASSED else ' of its own, and --model-arg'}, or leave the option out"
        )


WORKLOADS.register("function")(
    WorkloadKind(
        load=load_function,
        options={
            CHECKPOINT: check_text,
            "data": check_text,
            "take": check_text,
            "device": check_text,
            "model_args": check_arguments,
            **IMAGE_OPTIONS,
        },
        build=build_function,
    )
)
