"""All records of a study: tables of them, statistics over chips, files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.results.record import UNCALIBRATED, Record
from aihwkit_nabn.results.statistics import Estimate, estimate, paired_difference, recovered_share
from aihwkit_nabn.results.storage import read_result, write_result

if TYPE_CHECKING:
    from typing_extensions import Self


_PLACE = ("scenario", "group", "strength", "t_inference", "method", "method_name")
_COCO = re.compile(r"(mAP|AR)(_\w+)?(@\d+)?$")  # its names of metrics


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method in one scenario, over its chips.

    Attributes:
        record: The first chip's record, for what all chips have in common.
        estimate: The metric over the chips.
        difference: The metric minus the uncalibrated chip's, paired by chip; None for uncalibrated chips themselves.
        recovered: Share of the lost metric that came back; see `recovered_share`.
    """

    record: Record
    estimate: Estimate
    difference: Estimate | None
    recovered: float

    @property
    def calibrated(self) -> bool:
        """Whether the chips were calibrated."""
        return self.difference is not None

    @property
    def hurts(self) -> bool:
        """Whether the method is worse than doing nothing, beyond what chips vary by."""
        return self.difference is not None and self.difference.high < 0


@dataclass(frozen=True, kw_only=True)
class Results:
    """Records of all scenarios, chips and methods, with the digital model's metrics and what the run was made with.

    Attributes:
        records: In the order they were measured.
        digital: The digital model's metrics.
        settings: Versions, seed, chips, scenarios with their RPU configs as text, methods; plain JSON values.
    """

    records: list[Record]
    digital: dict[str, float]
    settings: dict[str, Any]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics; the first is the one shown where none is asked for."""
        return list(self.digital)

    @property
    def parts(self) -> dict[str, str]:
        """The metrics that are a part of another, with its name: ``mIoU/car`` is a part of ``mIoU``."""
        parents = {name: name.rpartition("/")[0] for name in self.digital}
        return {name: parent for name, parent in parents.items() if parent in self.digital}

    @property
    def missing(self) -> list[str]:
        """The metrics that COCO reports as -1: the test images have no object of that size."""
        return [name for name, value in self.digital.items() if value == -1 and _COCO.search(name)]

    @property
    def main_metrics(self) -> list[str]:
        """The metrics that are neither missing nor a part of another."""
        left_out = {*self.parts, *self.missing}
        return [name for name in self.digital if name not in left_out] or self.metrics[:1]

    @property
    def scenarios(self) -> list[str]:
        """Names of the scenarios, in the order they were measured."""
        return list(dict.fromkeys(record.scenario for record in self.records))

    @property
    def methods(self) -> list[str]:
        """Labels of the methods, the uncalibrated one first."""
        return list(dict.fromkeys(record.method for record in self.records))

    @property
    def n_chips(self) -> int:
        """Number of chips per scenario."""
        return len({record.chip_seed for record in self.records})

    def metric_name(self, metric: str | None = None) -> str:
        """Return `metric`, or the first one for None.

        Raises:
            UnknownNameError: there is no such metric.
        """
        if metric is None:
            return self.metrics[0]
        if metric not in self.digital:
            raise UnknownNameError("metric", metric, self.metrics)
        return metric

    def cells(self, metric: str | None = None) -> list[Cell]:
        """Return the statistics over chips, scenario by scenario and method by method.

        Args:
            metric: Which one; default: the first.

        Raises:
            UnknownNameError: there is no such metric.
            NabnError: a method lacks one of the chips the uncalibrated ones had.
        """
        name = self.metric_name(metric)
        groups: dict[tuple[str, str], dict[int | None, Record]] = {}
        for record in self.records:
            groups.setdefault((record.scenario, record.method), {})[record.chip_seed] = record
        baselines = {
            scenario: chips
            for (scenario, _), chips in groups.items()
            if next(iter(chips.values())).method_name == UNCALIBRATED
        }
        cells = []
        for (scenario, method), chips in groups.items():
            baseline = baselines.get(scenario)
            if baseline is None or set(baseline) != set(chips):
                raise NabnError(
                    f"method {method!r} and the uncalibrated chips differ in chips in scenario {scenario!r}"
                )
            values = [chips[chip].metrics[name] for chip in chips]
            unaided = [baseline[chip].metrics[name] for chip in chips]
            is_baseline = chips is baseline
            measured = estimate(values)
            cells.append(
                Cell(
                    record=next(iter(chips.values())),
                    estimate=measured,
                    difference=None if is_baseline else paired_difference(values, unaided),
                    recovered=float("nan")
                    if is_baseline
                    else recovered_share(measured.mean, estimate(unaided), self.digital[name]),
                )
            )
        return cells

    def to_frame(self) -> pd.DataFrame:
        """Return one row per record, with one column per axis and per metric."""
        rows = []
        for record in self.records:
            row = {key: value for key, value in vars(record).items() if key not in ("metrics", "axes")} | record.axes
            clash = sorted(set(row) & set(record.metrics))
            if clash:
                raise NabnError(f"metric {clash[0]!r} has the name of a column; rename it in eval_fn")
            rows.append({**row, **record.metrics})
        return pd.DataFrame(rows)

    def summary(self, metric: str | None = None) -> pd.DataFrame:
        """Return the statistics over chips, one row per scenario and method.

        Args:
            metric: Which one; default: the first.

        Returns:
            Columns: what identifies the row; ``digital``; ``n`` chips; ``mean``, ``std`` (``ddof=1``) and the 95%
            Student-t interval of the mean, ``ci95_low`` and ``ci95_high``; the difference to the uncalibrated chips
            paired by chip, ``diff_mean``, ``diff_low`` and ``diff_high``; ``recovered``, the share of the lost metric
            that came back. NaN where one chip, or no loss beyond the chips' spread, leaves nothing to say.

        Raises:
            UnknownNameError: there is no such metric.
        """
        name = self.metric_name(metric)
        nan = float("nan")
        rows = []
        for cell in self.cells(name):
            difference = cell.difference or Estimate(n=cell.estimate.n, mean=nan, std=nan, low=nan, high=nan)
            rows.append(
                {
                    **{field: getattr(cell.record, field) for field in _PLACE},
                    "metric": name,
                    "digital": self.digital[name],
                    "n": cell.estimate.n,
                    "mean": cell.estimate.mean,
                    "std": cell.estimate.std,
                    "ci95_low": cell.estimate.low,
                    "ci95_high": cell.estimate.high,
                    "diff_mean": difference.mean,
                    "diff_low": difference.low,
                    "diff_high": difference.high,
                    "recovered": cell.recovered,
                }
            )
        return pd.DataFrame(rows)

    def to_json(self, path: str | Path) -> Path:
        """Write everything to a file that `from_json` reads; a file of that name is replaced in one step.

        Returns:
            The path.

        Raises:
            NabnError: the file cannot be written.
        """
        return write_result(Path(path), digital=self.digital, records=self.records, settings=self.settings)

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read what `to_json` wrote.

        Raises:
            NabnError: no such file, or one that is damaged, of something else, or of a newer version.
        """
        return cls(**read_result(Path(path)))
