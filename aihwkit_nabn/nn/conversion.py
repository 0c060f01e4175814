"""From a digital model to its analog form, with a report of what went where."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from aihwkit.simulator.parameters.base import RPUConfigBase
from aihwkit.simulator.tiles.array import TileModuleArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from aihwkit_nabn.errors import ConversionError, NabnError
from aihwkit_nabn.nn import probe
from aihwkit_nabn.nn.attention import NoiseAwareMultiheadAttention, close_fast_path, is_plain_attention, split_windows
from aihwkit_nabn.nn.batchnorm import (
    NoiseAwareBatchNorm,
    NoiseAwareBatchNorm1d,
    NoiseAwareBatchNorm2d,
    NoiseAwareBatchNorm3d,
)
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.excluding import check_excluded, excluded_ids
from aihwkit_nabn.nn.inference_mode import outside_inference_mode
from aihwkit_nabn.nn.keeping import copied
from aihwkit_nabn.nn.layers import (
    NoiseAwareConv1d,
    NoiseAwareConv2d,
    NoiseAwareConv3d,
    NoiseAwareLinear,
    is_analog_layer,
    own_tiles,
)
from aihwkit_nabn.nn.matrices import count_new, kept_reason, matrix_parameters, opaque_weights
from aihwkit_nabn.nn.own_forward import NoiseAwareOwnForward
from aihwkit_nabn.nn.own_normalization import NoiseAwareNormalization, has_running_statistics
from aihwkit_nabn.nn.reparametrization import copy_model, refresh_weights
from aihwkit_nabn.nn.report import ConversionReport, LayerEntry
from aihwkit_nabn.nn.rewiring import check_not_compiled, rewire
from aihwkit_nabn.nn.transposed import NoiseAwareConvTranspose1d, NoiseAwareConvTranspose2d, NoiseAwareConvTranspose3d
from aihwkit_nabn.nn.unregistered import note_unregistered
from aihwkit_nabn.nn.verification import in_one_thread, remember_reference, verify
from aihwkit_nabn.results.placement import Exclude, excluded_names
from aihwkit_nabn.simulator.config.rpu_config import check_rpu_config
from aihwkit_nabn.simulator.product.replication import copies_of
from aihwkit_nabn.simulator.product.tiles import describe_mapping, n_cells

# The nearest class in the module's own order of inheritance decides.
ANALOG_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: NoiseAwareLinear,
    nn.Conv1d: NoiseAwareConv1d,
    nn.Conv2d: NoiseAwareConv2d,
    nn.Conv3d: NoiseAwareConv3d,
    nn.ConvTranspose1d: NoiseAwareConvTranspose1d,
    nn.ConvTranspose2d: NoiseAwareConvTranspose2d,
    nn.ConvTranspose3d: NoiseAwareConvTranspose3d,
}
NORMALIZATION_FORMS: dict[type[nn.Module], type[NoiseAwareBatchNorm]] = {
    nn.BatchNorm1d: NoiseAwareBatchNorm1d,
    nn.BatchNorm2d: NoiseAwareBatchNorm2d,
    nn.BatchNorm3d: NoiseAwareBatchNorm3d,
    _BatchNorm: NoiseAwareBatchNorm,
}
_PLAIN_FORMS = frozenset(ANALOG_FORMS.values())
_LAZY = "lazy layer without weights yet; run the model once first"

SpecificConfig = Callable[[str, nn.Module, RPUConfigBase], RPUConfigBase]


def register_analog_form(digital: type[nn.Module], analog: type[nn.Module]) -> None:
    """Let conversion put a kind of layer on tiles, with the subclasses that have no nearer form.

    Args:
        digital: The layer's class. Its own forward pass is taken for the function that the analog form computes.
        analog: Its analog form, with a classmethod ``from_digital(module, rpu_config)``; usually a `NoiseAwareLayer`.
            An attribute `ANALOG_CHILDREN` names children of the digital layer that it holds too, converted themselves.

    Raises:
        ConversionError: an argument is not such a class.
    """
    if not (isinstance(digital, type) and issubclass(digital, nn.Module)):
        raise ConversionError(f"digital must be a subclass of torch.nn.Module, got {digital!r}")
    if not (isinstance(analog, type) and issubclass(analog, nn.Module) and hasattr(analog, "from_digital")):
        raise ConversionError(f"analog must be a torch.nn.Module with a classmethod from_digital, got {analog!r}")
    ANALOG_FORMS[digital] = analog
    probe.take_as_stock(digital)


@outside_inference_mode()
def convert_to_noise_aware(
    model: nn.Module,
    rpu_config: RPUConfigBase,
    exclude: Exclude = (),
    *,
    specific_rpu_config_fun: SpecificConfig | None = None,
    example_inputs: Any = None,
) -> nn.Module:
    """Return an analog copy of `model`: matrix layers on tiles, BatchNorm noise-aware, everything in eval mode.

    Subclasses of the layers are converted too: where their forward pass prepares the input, calls the plain operation
    and goes on with the output, it runs as it is and that operation lies on tiles. Trial inputs show what a forward
    pass does. A module used in several places stays one, and hooks are kept. The copy has the model's own class, so
    code that knows the model knows the copy.

    Args:
        model: The reference; not changed.
        rpu_config: aihwkit configuration with a noise model, e.g. from `aihwkit_nabn.presets`. Copied for every tile.
        exclude: Names of modules to leave digital with all they contain; ``*`` and ``?`` match as in file names.
        specific_rpu_config_fun: As in aihwkit: called with name, module and a copy of `rpu_config`, returns the
            configuration for that layer.
        example_inputs: What the model is called with: a tensor, a tuple of arguments, or a dictionary of them. Both
            models are then run on them, the analog one without noise, and must agree (`verification.verify`).

    Returns:
        The copy, with a `ConversionReport` as its attribute `conversion_report`.

    Raises:
        ConversionError: nothing can be converted, an excluded name is not there, an argument has the wrong type, or the
            two models do not agree on the inputs given.
    """
    if not isinstance(model, nn.Module):
        raise ConversionError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_rpu_config("rpu_config", rpu_config, ConversionError)
    if not hasattr(rpu_config, "noise_model"):
        raise ConversionError(
            "rpu_config must be for inference (InferenceRPUConfig or TorchInferenceRPUConfig), "
            f"got {type(rpu_config).__name__}"
        )
    names = excluded_names(exclude)
    check_excluded(model, names)
    lazy = next((name for name, buffer in model.named_buffers() if is_lazy(buffer)), None)
    if lazy is not None:  # torch cannot copy these
        raise ConversionError(f"buffer {lazy!r} belongs to a {_LAZY}")
    check_not_compiled(model)
    with in_one_thread(model):  # whoever watches it has put other forward passes in
        copies: dict[int, Any] = {}
        own = copy_model(model, copies)
    registered = [part for whole in (model, own) for part in (*whole.modules(), *whole.parameters())]
    own.eval()  # weights that are computed (spectral_norm) are others in training
    work = _Conversion(rpu_config, excluded_ids(own, names), specific_rpu_config_fun)
    analog = work.replace(own)
    if not work.report.converted:
        raise ConversionError(f"model {type(model).__name__} has no layer to put on tiles\n{work.report}")
    rewire(analog, model, copies, work.replaced)
    note_unregistered(analog, work.report, {id(part) for part in registered}, work.counted)
    analog.eval()
    analog.conversion_report = work.report  # type: ignore[assignment]
    remember_reference(analog, model)
    if example_inputs is not None:
        with evaluation_mode(model):
            verify(model, analog, functools.partial(_run_on, example_inputs), "the example inputs")
    return analog


def _run_on(inputs: Any, model: nn.Module) -> Any:
    given = copied(inputs)
    try:
        if isinstance(given, Mapping):
            return model(**given)
        return model(*given) if isinstance(given, (tuple, list)) else model(given)
    except NabnError:
        raise
    except Exception as error:
        raise ConversionError(f"example_inputs: the model failed on them: {type(error).__name__}: {error}") from error


class _Conversion:
    """One walk over a model; `replaced` makes shared modules stay shared."""

    def __init__(self, rpu_config: RPUConfigBase, excluded: set[int], specific: SpecificConfig | None) -> None:
        self.rpu_config = rpu_config
        self.excluded = excluded
        self.specific = specific
        self.report = ConversionReport()
        self._keep = functools.partial(self._enter, self.report.kept_digital)
        self._refuse = functools.partial(self._enter, self.report.refused)
        self.replaced: dict[int, nn.Module] = {}
        self.kept_alive: list[nn.Module] = []  # ids are only unique among the living
        self.counted: set[int] = set()  # parameters in the report, each once also where modules share it

    def replace(self, module: nn.Module, name: str = "") -> nn.Module:
        """Return what takes the module's place."""
        if id(module) not in self.replaced:
            self.kept_alive.append(module)
            self.replaced[id(module)] = self._convert(module, name)
        return self.replaced[id(module)]

    def _convert(self, module: nn.Module, name: str) -> nn.Module:
        if id(module) in self.excluded:
            return self._keep(module, name, "excluded")
        if isinstance(module, nn.MultiheadAttention):
            if not is_plain_attention(module):
                return self._keep(module, name, "attention with a forward pass of its own")
            module = NoiseAwareMultiheadAttention(module)
        if is_analog_layer(module):
            tiles, placed = own_tiles(module), _placed(module)
            n_weights = sum(tile.in_size * tile.out_size for tile in tiles) // placed.get("copies", 1)
            placed |= {"n_tiles": len(tiles), "n_weights": n_weights}
            self._enter(self.report.converted, module, name, "was analog already", **placed)
            self._adopt_children(module, module, name)
            return module
        form = _form(module, ANALOG_FORMS)
        if form is not None:
            return self._to_tiles(module, name, form)
        if isinstance(module, NoiseAwareBatchNorm):
            return self._enter(self.report.normalization, module, name)
        opaque = opaque_weights(module)
        if opaque is not None:
            reason, n_packed = opaque
            return self._keep(module, name, reason, n_weights=n_packed + self._count(module))
        norm_form, reason = _normalization_form(module), ""
        if norm_form is not None:
            try:
                return self._to_noise_aware(module, name, norm_form)
            except NabnError as error:
                reason = str(error)
                self._refuse(module, name, reason, n_weights=self._count(module, recurse=False))
        split_windows(module)
        for child_name, child in list(module._modules.items()):
            if child is not None:
                module._modules[child_name] = self.replace(child, f"{name}.{child_name}" if name else child_name)
        close_fast_path(module)
        kept = "" if reason else kept_reason(module)
        return self._keep(module, name, kept, n_weights=self._count(module, recurse=False)) if kept else module

    def _to_tiles(self, module: nn.Module, name: str, form: type[nn.Module]) -> nn.Module:
        if any(is_lazy(parameter) for parameter in module.parameters()):
            return self._refuse(module, name, _LAZY)
        config = copy.deepcopy(self.rpu_config)
        if self.specific is not None:
            config = self.specific(name, module, config)
        refresh_weights(module)
        stock = probe.has_stock_forward(module)
        if not stock and form in _PLAIN_FORMS:
            form = NoiseAwareOwnForward
        try:
            analog: nn.Module = form.from_digital(module, config)  # type: ignore[attr-defined]
        except NabnError as error:
            return self._refuse(module, name, str(error))
        if not stock and form is not NoiseAwareOwnForward:
            reason = probe.differs(module, _perfect_twin(module, form))
            if reason:
                return self._refuse(module, name, reason)
        self._adopt_children(module, analog, name)
        self._enter(self.report.converted, module, name, n_tiles=len(own_tiles(analog)), **_placed(analog))
        return analog

    def _adopt_children(self, module: nn.Module, analog: nn.Module, name: str) -> None:
        """Give an analog layer the children of the original that are layers of their own, converted."""
        for child_name in getattr(analog, "ANALOG_CHILDREN", ()):
            child = self.replace(module.get_submodule(child_name), f"{name}.{child_name}" if name else child_name)
            analog._modules[child_name] = child

    def _to_noise_aware(self, module: nn.Module, name: str, form: type[NoiseAwareBatchNorm]) -> nn.Module:
        if getattr(module, "running_mean", None) is None:
            return self._keep(module, name, "keeps no running statistics: normalises with each batch's own")
        new = form.from_digital(module)
        if form is not NoiseAwareNormalization and not probe.has_stock_forward(module):
            reason = probe.differs(module, new)
            if reason:
                raise ConversionError(reason)
        self._adopt_children(module, new, name)
        self._enter(self.report.normalization, module, name)
        return new

    def _enter(
        self, entries: list[LayerEntry], module: nn.Module, name: str, reason: str = "", **fields: Any
    ) -> nn.Module:
        """Enter a module in one of the report's lists, its weights as counted unless `fields` has them; return it."""
        if "n_weights" not in fields:
            fields["n_weights"] = self._count(module)
        entries.append(LayerEntry(name=name, kind=type(module).__name__, reason=reason, **fields))
        return module

    def _count(self, module: nn.Module, recurse: bool = True) -> int:
        """Matrix weights of the module that no entry has counted yet."""
        return count_new(matrix_parameters(module, recurse), self.counted)


def _placed(layer: Any) -> dict[str, Any]:
    """How a layer lies on its tiles, as its entry says it; nothing of a single tile without an array."""
    array = getattr(layer, "analog_module", None)
    if not isinstance(array, TileModuleArray):
        return {}
    return {"mapping": describe_mapping(array), "copies": copies_of(array), "n_cells": n_cells(array)}


def _perfect_twin(module: nn.Module, form: type[nn.Module]) -> nn.Module:
    """The analog layer without any noise, to hold against the original."""
    from aihwkit.simulator.configs import TorchInferenceRPUConfig

    config = TorchInferenceRPUConfig(drift_compensation=None)
    config.forward.is_perfect = True
    twin: nn.Module = form.from_digital(module, config)  # type: ignore[attr-defined]
    return twin


def _form(module: nn.Module, forms: dict[type[nn.Module], type]) -> type | None:
    return next((forms[cls] for cls in type(module).__mro__ if cls in forms), None)


def _normalization_form(module: nn.Module) -> type[NoiseAwareBatchNorm] | None:
    form = _form(module, NORMALIZATION_FORMS)
    if form is None:
        form = _frozen_form(module) or (NoiseAwareNormalization if has_running_statistics(module) else None)
    elif has_running_statistics(module) and not probe.has_stock_forward(module):
        form = NoiseAwareNormalization
    return form


def _frozen_form(module: nn.Module) -> type[NoiseAwareBatchNorm] | None:
    """Frozen BatchNorm layers (torchvision's, DETR's) keep everything in buffers and share no base class.

    Where one says no `eps`, torch's is tried.
    """
    names = ("weight", "bias", "running_mean", "running_var")
    if "Frozen" in type(module).__name__ and all(name in module._buffers for name in names):
        return NoiseAwareBatchNorm2d
    return None
