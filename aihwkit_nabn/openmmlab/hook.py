"""A hook that puts the model on a chip before it is tested, under the upstream test tools."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from aihwkit_nabn.chip import program_chip, set_read_noise_seed
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.input_ranges import ranged_layers
from aihwkit_nabn.nn.verification import Verification, note_verification, verify
from aihwkit_nabn.openmmlab.batches import (
    CalibrationImages,
    calibration_forward,
    calibration_images,
    reference_forward,
)
from aihwkit_nabn.openmmlab.checkpoints import (
    CHIP_KEY,
    FitCheckpoint,
    chip_record,
    digital_state,
    drop_placeholders,
    restore_chip,
    write_checkpoint,
)
from aihwkit_nabn.openmmlab.iterations import ChipIterations, unwrapped
from aihwkit_nabn.openmmlab.patches import mend_ssd_head
from aihwkit_nabn.openmmlab.settings import build_calibration, build_rpu_config, images_of
from aihwkit_nabn.results.placement import Exclude, excluded_names
from aihwkit_nabn.seeding import check_seed, derive_seed, isolated_rng
from aihwkit_nabn.times import parse_time

VERIFIED_IMAGES = 2
RANGE_IMAGES = 256  # for static input ranges where nothing is calibrated: as many as calibrate by default


@HOOKS.register_module()
class AnalogHook(Hook):
    """Tests the model as one analog chip.

    ``custom_hooks = [dict(type='AnalogHook', rpu_config=dict(type='PCMPreset'), t_inference='1d')]``

    Before a test, after the checkpoint has been loaded, a copy of the model is converted, programmed and calibrated;
    during training, the same happens for each validation. The hook runs after those that change weights for a test
    (moving averages). The copy is the runner's model inside the iterations of the test alone: all other code sees the
    digital model, and training goes on with it as if there had been no chip.

    Args:
        rpu_config: The noise setting, see `build_rpu_config`.
        seed: The chip's seed.
        t_inference: Time after programming: seconds or text such as ``'1d'``.
        calibration: None for the chip as programmed, True for the default method, or ``dict(method='paired',
            max_samples=256)``. Both entries are optional, as are ``batch_size`` (images per calibration batch),
            ``pipeline`` (``'train'`` or ``'test'``), ``reference_skips`` (see `build_methods`) and the method's own
            options. The images are the train set's, without labels.
        exclude: Names of modules that stay digital, ``*`` and ``?`` match; or files that `nabn place` wrote.
        in_val: Whether validations during training run on the chip too.
        out_file: Where to write a checkpoint with the chip and its calibration after a test, relative to the work
            folder. Tested with the same hook, the checkpoint gives the same chip without calibrating again.

    Attributes:
        enabled: False leaves the model alone.

    Raises:
        NabnError: an argument has a value that is not allowed.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        rpu_config: Any,
        seed: int = 0,
        t_inference: float | str = 0.0,
        calibration: Mapping[str, Any] | bool | None = None,
        exclude: Exclude = (),
        in_val: bool = True,
        out_file: str | None = None,
    ) -> None:
        self.noise, self.rpu_config = build_rpu_config(rpu_config)
        self.seed = check_seed("seed", seed)
        self.t_inference = parse_time(t_inference)
        self.exclude = excluded_names(exclude)
        self.in_val = in_val
        self.out_file = out_file
        self.enabled = True
        self.method, self.options = build_calibration(calibration)
        self._test: ChipIterations | None = None
        self._tested: dict[str, Tensor] = {}
        self._stored: Any = None
        self._verification: Verification | None = None

    @property
    def settings(self) -> str:
        """Which chip, how calibrated, in words; what a stored chip is recognised by."""
        method = None if self.method is None else (self.method.name, sorted(self.options.items()))
        return f"{self.rpu_config}\nseed={self.seed} t={self.t_inference} exclude={self.exclude} calibration={method}"

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Remember the chip of a checkpoint that has one."""
        if self.enabled:
            FitCheckpoint().after_load_checkpoint(runner, checkpoint)
        self._stored = checkpoint.get(CHIP_KEY)

    @property
    def chip(self) -> nn.Module | None:
        """The analog model, from before a test's first iteration until every hook has its metrics; else None."""
        return None if self._test is None else self._test.chip

    def before_test_epoch(self, runner: Any) -> None:
        """Make the chip."""
        self._leave()
        if self.enabled:
            check_loaded(runner)
            mend_ssd_head()
            self._enter(runner, runner.test_loop)

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Check that it was the chip that was tested."""
        if self._test is not None:
            self._test.check_ran()

    def after_test(self, runner: Any) -> None:
        """Write the chip if asked to, and forget it."""
        if self._test is not None and self.out_file is not None:
            self._write(runner, self._test)
        self._leave()

    def before_val_epoch(self, runner: Any) -> None:
        """Make a chip of the model as trained so far."""
        self._leave()
        if self.enabled and self.in_val:
            self._stored = None
            self._enter(runner, runner.val_loop)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Check that it was the chip that was validated."""
        self.after_test_epoch(runner, metrics)

    def after_val(self, runner: Any) -> None:
        """Forget the chip, after hooks that save the best checkpoint."""
        self._leave()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Forget the chip of a validation that was broken off."""
        self._leave()

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the chip beside the digital weights, in a form that loads safely and into any tool."""
        if self._test is None:
            return
        if runner.model is self._test.chip:  # inside an iteration
            checkpoint["state_dict"] = digital_state(unwrapped(self._test.digital))
        checkpoint[CHIP_KEY] = chip_record(self._test.chip, self.settings)

    def _verify(self, digital: Any, analog: nn.Module, loader: Any) -> None:
        """Run both models on the first images to be tested, by the pass that tests them; once per run."""
        if self._verification is not None:
            note_verification(analog, self._verification)
            return
        n = min(VERIFIED_IMAGES, len(loader.dataset))
        if n == 0:
            return
        with isolated_rng(derive_seed(self.seed, "verification")):
            batch = loader.collate_fn([loader.dataset[index] for index in range(n)])

        def test(model: Any) -> Any:
            return model.test_step(copy.deepcopy(batch))

        with evaluation_mode(digital, analog):
            self._verification = verify(digital, analog, test, f"{n} of the images to be tested")

    def _enter(self, runner: Any, loop: Any) -> None:
        digital = unwrapped(runner.model)
        analog: Any = convert_to_noise_aware(digital, self.rpu_config, self.exclude)
        self._verify(digital, analog, loop.dataloader)
        if self._stored is None:  # else its ranges come with the chip
            self._set_input_ranges(runner, analog)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the input range of layer")
            program_chip(analog, self.seed, self.t_inference)
        report = analog.conversion_report
        runner.logger.info(f"{type(self).__name__}: {self.noise}, chip {self.seed}, {self.t_inference:g} s\n{report}")
        if not self._restored(runner, analog):
            if self._stored is not None:
                self._set_input_ranges(runner, analog)
            if self.method is not None:
                self._calibrate(runner, analog, digital)
        set_read_noise_seed(analog, derive_seed(self.seed, "evaluate"))
        analog.register_state_dict_post_hook(drop_placeholders)
        self._test = ChipIterations(analog, runner, loop)
        if self.out_file is not None:  # moving averages have left the model again when the test is over
            self._tested = {name: value.clone() for name, value in digital_state(digital).items()}

    def _restored(self, runner: Any, analog: nn.Module) -> bool:
        if self._stored is None:
            return False
        found = restore_chip(analog, self._stored, self.settings)
        runner.logger.info(
            "the checkpoint's own chip and calibration are used"
            if found
            else "the checkpoint's chip has other settings, so it is not used"
        )
        return found

    def _set_input_ranges(self, runner: Any, analog: nn.Module) -> None:
        """Give the tiles static input ranges, where the settings ask for them, from images of the train set."""
        if not ranged_layers(analog):
            return
        n, batch_size = self.options.get("max_samples", RANGE_IMAGES), self.options.get("batch_size")
        images = CalibrationImages(runner.cfg, PLAIN, n, batch_size, self.seed)
        ranges = self._protocol(analog).set_input_ranges(analog, images)
        runner.logger.info(f"input ranges of {len(ranges)} layers set from {len(images.indices)} images")

    def _calibrate(self, runner: Any, analog: nn.Module, digital: nn.Module) -> None:
        method: Any = self.method
        images = None
        if method.needs_batches:
            images = calibration_images(
                runner.cfg,
                images_of(method, self.options["pipeline"]),
                self.options["max_samples"],
                self.options["batch_size"],
                self.seed,
                self.options.get("reference_skips", ()),
            )
        report = self._protocol(digital).calibrate_with(analog, self.seed, method, images, method.needs_reference)
        taken = "" if report.taken == method.name else f", which took {report.taken!r}"
        runner.logger.info(
            f"calibrated with {method.name!r}{taken}: {report.n_samples} images, {len(report.layers)} layers, "
            f"{report.seconds:.1f} s"
        )

    def _protocol(self, model: nn.Module) -> EvaluationProtocol:
        return EvaluationProtocol(
            model,
            seed=self.seed,
            forward_fn=calibration_forward,
            reference_forward_fn=reference_forward,
            max_samples=self.options.get("max_samples"),
        )

    def _leave(self) -> None:
        test, self._test, self._tested = self._test, None, {}
        if test is not None:
            test.end()

    def _write(self, runner: Any, test: ChipIterations) -> None:
        path = Path(self.out_file or "")
        path = path if path.is_absolute() else Path(runner.work_dir) / path
        meta: dict[str, Any] = {"cfg": runner.cfg.pretty_text, "experiment_name": runner.experiment_name}
        metainfo = getattr(runner.test_dataloader.dataset, "metainfo", None)
        if metainfo:
            meta["dataset_meta"] = {key: value for key, value in metainfo.items() if key in ("classes", "palette")}
        record = chip_record(test.chip, self.settings)
        write_checkpoint(path, self._tested, meta, record)
        runner.logger.info(f"chip and calibration written to {path}")


def start_test(runner: Any) -> nn.Module:
    """Return the digital model in eval mode, with the run's hooks told that a test begins; no hook makes a chip of it.

    Raises:
        NabnError: no checkpoint has been loaded.
    """
    check_loaded(runner)
    mend_ssd_head()
    for hook in runner.hooks:
        if isinstance(hook, AnalogHook) and hook.enabled:
            hook.enabled = False
            runner.logger.info("AnalogHook is switched off: this run converts the model itself, for each noise setting")
    runner.call_hook("before_test")
    runner.call_hook("before_test_epoch")
    return unwrapped(runner.model).eval()


def check_loaded(runner: Any) -> None:
    """Raise unless the runner has loaded a checkpoint, or the model weights of its own.

    Raises:
        NabnError: the network has its random weights still.
    """
    if getattr(runner, "_has_loaded", False) or getattr(runner, "_load_from", None):
        return
    raise NabnError(
        "no checkpoint has been loaded, so a random network would be put on the chip; give test.py a checkpoint, or "
        "set load_from"
    )
