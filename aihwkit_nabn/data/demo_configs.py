"""Where the configs and the checkpoints of the OpenMMLab demo are, in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

from aihwkit_nabn.errors import NabnError, UnknownNameError

DEMO_CONFIGS = ("shapes_detector", "shapes_segmenter")  # of mmdetection, of mmsegmentation

_PACKAGE = Path(__file__).resolve().parents[1]
# The wheel carries the demo's configs inside the package; an editable install or a checkout has them beside it.
_FOLDERS = (_PACKAGE.parent / "configs" / "demo", _PACKAGE / "_configs" / "demo")


def demo_config_path(name: str) -> Path:
    """Return the config file of one of `DEMO_CONFIGS`, named with or without ``.py``.

    Raises:
        UnknownNameError: there is no such demo model.
        NabnError: its file is not where the package or the repository has it.
    """
    name = _known(name)
    for folder in _FOLDERS:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    raise NabnError(f"demo config {name}.py is in none of: {', '.join(map(str, _FOLDERS))}; reinstall the package")


def demo_checkpoint_path(name: str) -> Path:
    """Return the checkpoint of a demo model: weights only, as mmengine reads them.

    Raises:
        UnknownNameError: there is no such demo model.
        NabnError: the file is missing.
    """
    path = Path(__file__).parent / "checkpoints" / f"{_known(name)}.pth"
    if not path.is_file():
        raise NabnError(f"demo checkpoint {path} does not exist; tools/train_demo.py writes it")
    return path


def _known(name: str) -> str:
    name = str(name).removesuffix(".py")
    if name not in DEMO_CONFIGS:
        raise UnknownNameError("demo model", name, DEMO_CONFIGS)
    return name
