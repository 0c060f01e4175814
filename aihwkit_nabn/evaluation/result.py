"""What an evaluation gives back."""

from __future__ import annotations

from pathlib import Path

from aihwkit_nabn.reporting import write_report
from aihwkit_nabn.results import Results


class EvaluationResult(Results):
    """Records of all scenarios, chips and methods, with the digital model's metrics and what the run was made with."""

    def report(self, path: str | Path) -> Path:
        """Write ``results.json``, ``table.md``, ``table.csv`` and one plot per metric into the folder `path`.

        Returns:
            The folder's path.

        Raises:
            NabnError: `path` is a file, or cannot be made.
        """
        return write_report(self, path)
