"""The records of `tools/stacks.py`, one JSON line per stack, and the table made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pages import markdown_table, write_between

from aihwkit_nabn.files import write_text
from aihwkit_nabn.stacks import OPENMMLAB, STACKS

BEGIN, END = "<!-- stacks: written by tools/stacks.py -->", "<!-- end -->"
HEADINGS = ["stack", "Python", "torch", "aihwkit", "numpy", "OpenMMLab", "passed", "failed", "skipped"]
HEADINGS += ["aihwkit's compiled tile", "tests", "date, commit"]


def last_line(text: str) -> str:
    """Return the last line that is not empty, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def read_records(out: Path) -> list[dict[str, Any]]:
    """Return what earlier runs wrote; half a line at the end, of a run that was killed, is left out."""
    path = out.with_suffix(".jsonl")
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def append(out: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Add a record in place of the stack's earlier one and return them all."""
    records = [entry for entry in read_records(out) if entry["stack"] != record["stack"]] + [record]
    order = [stack.name for stack in STACKS]
    records.sort(key=lambda entry: order.index(entry["stack"]) if entry["stack"] in order else len(order))
    write_text(out.with_suffix(".jsonl"), "".join(json.dumps(entry) + "\n" for entry in records))
    return records


def summary(record: dict[str, Any]) -> str:
    """Return how a stack fared, in a line."""
    if "error" in record:
        return record["error"]
    text = f"{record['passed']} passed, {record['failed']} failed, {record['skipped']} skipped"
    more = f" and {record['failed'] - 3} more" if record["failed"] > 3 else ""
    return text + (f": {', '.join(record['failures'][:3])}{more}" if record["failed"] else "")


def table(records: list[dict[str, Any]]) -> str:
    """Return the records as a Markdown table."""
    rows = []
    stacks = {stack.name: stack for stack in STACKS}
    for record in records:
        stack = stacks.get(record["stack"])
        if stack is None:
            continue
        v = record.get("versions", {})
        cells = [record["stack"], v.get("python", stack.python)]
        cells += [v.get(name, getattr(stack, name)).split("+")[0] for name in ("torch", "aihwkit", "numpy")]
        mm = [f"{name} {v[n]}" for name, group in OPENMMLAB.items() for n in group[:2] if n in v]
        cells.append(f"{stack.openmmlab}: {', '.join(mm)}" if mm else stack.openmmlab)
        cells += [str(record.get(key, "-")) for key in ("passed", "failed", "skipped")]
        tile = record.get("compiled_tile")
        cells.append("-" if tile is None else "works" if tile["works"] else tile["detail"])
        cells += [record["tests"], f"{record['date']}, {record['commit']}"]
        rows.append([cell.replace("|", "\\|") for cell in cells])
    lines = markdown_table(HEADINGS, rows, ["---"] * 6 + ["---:"] * 3 + ["---"] * 3)
    lines += [
        f"\n{len(again['tests'])} of the tests of {record['stack']} failed at {record['commit']} and were run again, "
        f"mended, at {again['commit']}: {', '.join(again['tests'])}"
        for record in records
        if (again := record.get("again"))
    ]
    failing = [record for record in records if "error" in record or record.get("failed")]
    lines += ["", *(f"- {record['stack']}: {summary(record)}" for record in failing)] if failing else []
    return "\n".join(lines)


def write_table(out: Path, records: list[dict[str, Any]]) -> None:
    """Put the table into the document, between its marks; what stands around them stays."""
    write_between(out, BEGIN, END, table(records), title="Stacks")
