"""What a worker process does: load each model once, and measure task after task."""

from __future__ import annotations

from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.sweeps.classifier import Classifier, Emit
from aihwkit_nabn.sweeps.config_model import measure_config
from aihwkit_nabn.sweeps.jobs import Task
from aihwkit_nabn.sweeps.spec import parse_spec
from aihwkit_nabn.sweeps.stream import measure_stream


class Worker:
    """Measures tasks of one sweep.

    Args:
        content: The sweep as its file has it, which every process reads for itself.
        launcher: How several processes work on one big model, see `aihwkit_nabn.openmmlab.run`; for configs.
        work_dir: Folder for logs of configs.
    """

    def __init__(self, content: Any, *, launcher: str = "none", work_dir: str | None = None) -> None:
        self.spec = parse_spec(content)
        self.launcher, self.work_dir = launcher, work_dir
        self._models: dict[str, Classifier] = {}

    def measure(self, task: Task, emit: Emit) -> None:
        """Do a task, handing over each record when it is there.

        Raises:
            NabnError: something about the model or its data that the user can mend; begins with what was measured.
        """
        entry = next(model for model in self.spec.models if model.name == task.model)
        try:
            if entry.is_config:
                measure_config(self.spec, entry, task, emit, launcher=self.launcher, work_dir=self.work_dir)
                return
            if entry.name not in self._models:
                self._models[entry.name] = Classifier(self.spec, entry)
            run = Classifier.measure if self.spec.stream is None else measure_stream
            run(self._models[entry.name], task, emit)
        except NabnError as error:
            raise NabnError(f"{task.key}: {error}") from error
