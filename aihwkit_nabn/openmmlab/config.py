"""Configs of mmdetection and mmsegmentation: finding them, reading them, building their models without a download."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from aihwkit_nabn.errors import MissingDependencyError, NabnError, UnknownNameError, missing_extra, suggestion
from aihwkit_nabn.openmmlab.missing_packages import chain, explained
from aihwkit_nabn.openmmlab.patches import find_mmseg_configs, mend_ssd_head
from aihwkit_nabn.seeding import isolated_rng

if TYPE_CHECKING:
    from mmengine.config import Config

SCOPES = ("mmdet", "mmseg")
EXTRA = "openmmlab"
RANDOM = "random"


def require(package: str) -> Any:
    """Return the imported package.

    Raises:
        MissingDependencyError: it is not installed, or something it needs is not; the message has the install line.
    """
    if importlib.util.find_spec(package) is None:
        raise missing_extra(package, EXTRA)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"{package} cannot be imported ({error}); run: pip install 'aihwkit-nabn[{EXTRA}]'"
        ) from error


def installed_configs(scope: str) -> list[str]:
    """Return the names of the configs in an installed wheel, e.g. ``"retinanet/retinanet_r50_fpn_1x_coco.py"``.

    Raises:
        UnknownNameError: `scope` is neither ``"mmdet"`` nor ``"mmseg"``.
        MissingDependencyError: the package is not installed.
    """
    folder = _config_folder(scope)
    paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(path.as_posix() for path in paths if path.parts[0] != "_base_" and not path.name.startswith("_"))


def find_config(name: str) -> Path:
    """Return the config file that `name` means.

    Args:
        name: A path, or ``"mmdet::FOLDER/FILE.py"`` or ``"mmseg::..."`` for a config of the installed wheel.

    Raises:
        NabnError: there is no such file; the message suggests the nearest.
        MissingDependencyError: the wheel is not installed.
    """
    scope, colons, rest = name.partition("::")
    if colons:
        path = _config_folder(scope) / rest
        if path.is_file() and path.suffix == ".py":
            return path
        raise NabnError(f"{scope} has no config {rest!r}{_nearest(rest, installed_configs(scope))}")
    path = Path(name)
    if path.is_file():
        if path.suffix != ".py":
            raise NabnError(f"config must be a Python file, got {name!r}")
        return path
    beside = [sibling.name for sibling in path.parent.glob("*.py")] if path.parent.is_dir() else []
    hint = suggestion(path.name, beside)
    for other in SCOPES:
        if not hint and importlib.util.find_spec(other) is not None:
            near = [entry for entry in installed_configs(other) if Path(entry).name == path.name]
            hint = f", did you mean {other + '::' + near[0]!r}?" if near else ""
    raise NabnError(f"config {name!r} does not exist{hint}")


def load_config(name: str | Path, cfg_options: Mapping[str, Any] | None = None) -> Config:
    """Return a config as mmengine reads it.

    Args:
        name: As `find_config` takes it.
        cfg_options: Dotted keys to values, merged into the config: ``{"model.backbone.depth": 18}``.

    Raises:
        NabnError: the file does not exist or cannot be read, or an option does not fit it.
        MissingDependencyError: mmengine, or a package that the config names, is not installed.
    """
    require("mmengine")
    path = find_config(str(name))
    from mmengine.config import Config

    find_mmseg_configs()
    try:
        with explained(f"config {str(name)!r}"):
            config = Config.fromfile(str(path))
    except NabnError:
        raise
    except Exception as error:  # a config is a program
        # mmengine's own word for a failed import is the whole search path.
        cause = chain(error)[-1] if isinstance(error, ImportError) else error
        raise NabnError(f"config {str(name)!r} cannot be read: {type(cause).__name__}: {cause}") from error
    if cfg_options:
        try:
            config.merge_from_dict(dict(cfg_options))
        except Exception as error:  # mmengine: KeyError, TypeError, AssertionError, by the kind of misfit
            raise NabnError(f"cfg-options do not fit {str(name)!r}: {error}") from error
    return config


def parse_cfg_options(items: Sequence[str]) -> dict[str, Any]:
    """Return ``KEY=VALUE`` texts as a dictionary, values read as the upstream tools read them.

    Raises:
        NabnError: an item has another form.
    """
    import argparse

    require("mmengine")
    from mmengine.config import DictAction

    for item in items:
        key, equals, value = item.partition("=")
        if not (key.strip() and equals and value):
            raise NabnError(f"cfg-options must be KEY=VALUE, e.g. model.backbone.depth=18, got {item!r}")
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    try:
        return dict(parser.parse_args(["--cfg-options", *items]).cfg_options) if items else {}
    except AssertionError as error:  # upstream's word for brackets that do not close
        raise NabnError(f"cfg-options: {error}") from error


def scope_of(config: Config) -> str:
    """Return ``"mmdet"`` or ``"mmseg"``, by the config's default scope or the home of its model's class.

    Raises:
        NabnError: it is of another package.
        MissingDependencyError: a class of the config is of a package that is not installed.
    """
    with explained(f"config {config.filename!r}"):  # the new kind of configs imports when its entries are read
        scope = config.get("default_scope")
        kind = (config.get("model") or {}).get("type")
    if scope is None:
        scope = getattr(kind, "__module__", "").partition(".")[0] or None
    if scope not in SCOPES:
        raise NabnError(f"default_scope of a config must be {' or '.join(SCOPES)}, got {scope!r}")
    return str(scope)


def register_modules(scope: str) -> None:
    """Import all of a package's models, data sets and metrics, and make it the default scope.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    # Their imports print and warn about optional packages that nothing here uses.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", UserWarning)
        for package in ("mmengine", "mmcv", scope):
            require(package)
        require(f"{scope}.utils").register_all_modules(init_default_scope=False)
    if scope == "mmdet":
        mend_ssd_head()
    from mmengine.registry import DefaultScope

    current = DefaultScope.get_current_instance()
    if current is None or current.scope_name != scope:
        DefaultScope.get_instance(f"nabn-{scope}-{time.time_ns()}", scope_name=scope)


def build_digital(config: Config, checkpoint: str | Path | None = None, *, seed: int = 0) -> nn.Module:
    """Return the config's model in eval mode on the CPU; no pretrained backbone is downloaded.

    Args:
        config: From `load_config`; not changed.
        checkpoint: File with the trained weights; None or ``"random"`` for seeded random ones.
        seed: Of the random weights.

    Raises:
        NabnError: the config has no model or one that cannot be built, or the checkpoint does not exist.
        MissingDependencyError: the config's package is not installed.
    """
    if checkpoint not in (None, RANDOM) and not Path(str(checkpoint)).is_file():
        raise NabnError(f"checkpoint {str(checkpoint)!r} does not exist; give a file, or the word {RANDOM}")
    scope = scope_of(config)
    if not config.get("model"):
        raise NabnError(f"config {config.filename!r} defines no model")
    register_modules(scope)
    from mmengine.registry import MODELS

    settings = without_downloads(config.model)
    with isolated_rng(seed), warnings.catch_warnings():
        try:
            warnings.simplefilter("ignore", UserWarning)  # on what the losses will do
            with explained(f"model {settings.get('type')!r}"):
                model: nn.Module = MODELS.build(settings)
        except NabnError:
            raise
        except Exception as error:  # whatever the model's own constructor says
            raise NabnError(f"model {settings.get('type')!r} cannot be built: {error}") from error
    if checkpoint not in (None, RANDOM):
        from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint_to_model

        from aihwkit_nabn.openmmlab.checkpoints import fit_checkpoint

        content = CheckpointLoader.load_checkpoint(str(checkpoint), map_location="cpu", logger="silent")
        for note in fit_checkpoint(model, content):
            warnings.warn(note, stacklevel=2)
        _load_checkpoint_to_model(model, content, logger="silent")
    return model.eval()


def without_downloads(settings: Any) -> Any:
    """Return a copy of a model's settings in which nothing asks for pretrained weights."""
    if isinstance(settings, Mapping):
        copied: Any = type(settings)()
        for key, value in settings.items():
            if key == "pretrained":
                copied[key] = None
            elif key != "init_cfg" or not _is_pretrained(value):
                copied[key] = without_downloads(value)
        return copied
    if isinstance(settings, (list, tuple)):
        return type(settings)(without_downloads(value) for value in settings if not _is_pretrained(value))
    return settings


def _is_pretrained(value: Any) -> bool:
    return isinstance(value, Mapping) and type_name(value.get("type")) in ("Pretrained", "PretrainedInit")


def type_name(kind: object) -> str:
    """Return the bare name of a type in a config: given as text, with a scope or without, or as a class."""
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def pipelines_in(part: Any) -> Iterator[list[Any]]:
    """Yield the pipelines in a data set's config, those of the sets that it wraps too."""
    if isinstance(part, Mapping):
        if isinstance(part.get("pipeline"), list):
            yield part["pipeline"]
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for entry in part:
            yield from pipelines_in(entry)


def _config_folder(scope: str) -> Path:
    if scope not in SCOPES:
        raise UnknownNameError("config package", scope, SCOPES)
    spec = importlib.util.find_spec(scope)
    if spec is None or spec.origin is None:
        raise missing_extra(scope, EXTRA)
    package = Path(spec.origin).parent
    # Wheels carry their configs in .mim; a checkout has them beside the package.
    for folder in (package / ".mim" / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise NabnError(f"the installed {scope} carries no configs; give the path of a config file")


def _nearest(name: str, known: Sequence[str]) -> str:
    same_file = [entry for entry in known if Path(entry).name == Path(name).name]
    same_folder = [entry for entry in known if entry.partition("/")[0] == name.partition("/")[0]]
    return f", did you mean {same_file[0]!r}?" if same_file else suggestion(name, same_folder or known)
