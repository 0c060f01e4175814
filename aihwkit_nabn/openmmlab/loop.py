"""A test loop that measures the digital model, the chips as programmed, and every calibration method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import get_rank, is_main_process
from mmengine.registry import LOOPS
from mmengine.runner.loops import TestLoop
from rich.console import Console
from torch import nn

from aihwkit_nabn.calibration.method import DEFAULT_METHOD
from aihwkit_nabn.errors import NabnError, check_count, check_flag
from aihwkit_nabn.evaluation import EvaluationResult, evaluate
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.evaluation.plan import has_input_ranges
from aihwkit_nabn.evaluation.settings import setup_of
from aihwkit_nabn.openmmlab.batches import calibration_forward, calibration_images, reference_forward
from aihwkit_nabn.openmmlab.checkpoints import FitCheckpoint
from aihwkit_nabn.openmmlab.examples import write_examples
from aihwkit_nabn.openmmlab.hook import start_test
from aihwkit_nabn.openmmlab.measure import evaluator_of
from aihwkit_nabn.openmmlab.run import data_setup, from_main_process
from aihwkit_nabn.openmmlab.settings import build_methods, build_scenarios, check_pipeline, check_samples
from aihwkit_nabn.reporting import print_metrics, print_table
from aihwkit_nabn.results import RecordLog
from aihwkit_nabn.results.placement import Exclude, excluded_names
from aihwkit_nabn.seeding import check_seed


@LOOPS.register_module()
class AnalogTestLoop(TestLoop):
    """``test_cfg = dict(type='AnalogTestLoop', rpu_config=dict(type='PCMPreset'), methods=['none', 'paired'])``.

    Runs under the upstream ``test.py``. Prints a table, writes a folder ``analog`` (JSON, tables, plots) into the run's
    log folder, and gives scalars to the visualizer. An `AnalogHook` in the same config is switched off.

    Args:
        runner: Given by mmengine, as are the next two.
        dataloader: The test set.
        evaluator: Its metrics.
        rpu_config: One noise setting or a list, see `build_rpu_config`.
        t_inference: Time after programming, or a list: seconds or text such as ``'1d'``.
        methods: See `build_methods`; the chip as programmed (``'none'``) is always among them.
        chips: Number of chips per scenario.
        seed: Chip ``i`` is programmed with ``seed + i``; also fixes the calibration images.
        calibration_seed: Fixes the calibration images instead.
        max_samples: Number of calibration images; None takes the whole train set.
        calibration_batch_size: Images per calibration batch; None: as the train set's loader has it.
        pipeline: ``'train'`` or ``'test'`` for the calibration images of all methods; None: what suits each.
        exclude: Names of modules that stay digital, ``*`` and ``?`` match; or files that `nabn place` wrote.
        fp16: Measure under autocast.
        per_class: Report mIoU and box mAP also class by class, as ``mIoU/car``.
        examples: Number of test images whose predictions are drawn into the folder ``examples`` beside the results:
            digital, on the first chip as programmed, and on the calibrated chip.
        take: Which weights of a checkpoint that holds several: ``'model'``, ``'ema'`` or their place in it; None: those
            that mmengine takes.
        records: File to keep each measurement in as soon as it is made; None: ``records.jsonl`` beside the results.
        resume: Continue the interrupted run of the same network and settings that wrote `records`.

    Raises:
        NabnError: an argument has a value that is not allowed.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        evaluator: Any,
        rpu_config: Any,
        t_inference: Any = 0.0,
        methods: Any = ("none", "population", DEFAULT_METHOD),
        chips: int = 5,
        seed: int = 0,
        calibration_seed: int | None = None,
        max_samples: int | None = 256,
        calibration_batch_size: int | None = None,
        pipeline: str | None = None,
        exclude: Exclude = (),
        fp16: bool = False,
        per_class: bool = False,
        examples: int = 0,
        take: str | None = None,
        records: str | None = None,
        resume: bool = False,
    ) -> None:
        self.scenarios = build_scenarios(rpu_config, t_inference)
        self.methods, self.sets = build_methods(methods, check_pipeline(pipeline))
        self.chips = check_count("chips", chips, minimum=1)
        self.seed = check_seed("seed", seed)
        self.calibration_seed = (
            self.seed if calibration_seed is None else check_seed("calibration_seed", calibration_seed)
        )
        self.max_samples = check_samples("max_samples", max_samples)
        self.calibration_batch_size = check_samples("calibration_batch_size", calibration_batch_size)
        self.exclude = excluded_names(exclude)
        self.per_class = check_flag("per_class", per_class)
        self.records = records
        self.resume = check_flag("resume", resume)
        if self.resume and records is None:
            raise NabnError("resume needs records, the file of the interrupted run")
        self.examples = check_count("examples", examples, minimum=0)
        super().__init__(runner, dataloader, evaluator, fp16=fp16)
        runner.register_hook(FitCheckpoint(take))

    def run(self) -> dict[str, float]:
        """Evaluate, print, write; return the means as ``SCENARIO/METHOD/METRIC``."""
        model = start_test(self.runner)
        folder = Path(self.runner.log_dir) / "analog"
        with self._record_log(model, folder) as log:
            arguments = self.arguments()
            self.result = evaluate(model, progress=is_main_process(), record_file=log, **arguments)
        metrics = flat_metrics(self.result)
        if is_main_process():
            self.result.report(folder)
            console = Console()
            print_table(self.result, console)
            print_metrics(self.result, console)
            if self.examples:
                dataset = self.dataloader.dataset
                write_examples(self.result, model, arguments, dataset, self.examples, folder / "examples")
            self.runner.logger.info(f"tables, plots and numbers are in {folder}")
            self.runner.visualizer.add_scalars(metrics)
        self.runner.call_hook("after_test_epoch", metrics=metrics)
        self.runner.call_hook("after_test")
        return metrics

    def _record_log(self, model: nn.Module, folder: Path) -> RecordLog:
        setup = setup_of(
            model,
            seed=self.seed,
            calibration_seed=None if self.calibration_seed == self.seed else self.calibration_seed,
            max_samples=self.max_samples,
            calibration_batch_size=self.calibration_batch_size,
            exclude=list(self.exclude),
            fp16=self.fp16,
            per_class=self.per_class,
            **data_setup(self.runner.cfg),
        )
        path = Path(self.records) if self.records is not None else folder / "records.jsonl"
        return RecordLog(path, setup, resume=self.resume, rank=get_rank(), broadcast=from_main_process)

    def arguments(self) -> dict[str, Any]:
        """Return what `evaluate` is called with."""
        sets = dict(self.sets)
        if any(has_input_ranges(scenario.rpu_config) for scenario in self.scenarios):
            sets.setdefault(PLAIN, (PLAIN, ()))
        taken = self.max_samples, self.calibration_batch_size, self.calibration_seed
        batches = {
            name: calibration_images(self.runner.cfg, images, *taken, skips)
            for name, (images, skips) in sorted(sets.items())
        }
        return {
            "scenarios": self.scenarios,
            "methods": self.methods,
            "eval_fn": evaluator_of(self, fp16=self.fp16, per_class=self.per_class),
            "chips": self.chips,
            "seed": self.seed,
            "calibration_batches": batches or None,
            "forward_fn": calibration_forward,
            "reference_forward_fn": reference_forward,
            "exclude": self.exclude,
        }


def flat_metrics(result: EvaluationResult) -> dict[str, float]:
    """Return the digital metrics and the means over chips under names a logger can take."""
    flat = {f"digital/{name}": value for name, value in result.digital.items()}
    for name in result.metrics:
        for cell in result.cells(name):
            flat[f"{cell.record.scenario}/{cell.record.method}/{name}"] = cell.estimate.mean
    return flat
