"""What is known of an installation: the list of stacks, the verdict on versions, and the results that were written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aihwkit_nabn.commands._checks import NOTE, OK, check_stack
from aihwkit_nabn.stacks import BROKEN, FLAVOURS, STACKS, TESTED, UNTESTED, Stack, flavour, judge, number

RESULTS = Path(__file__).parents[1] / "docs" / "stacks.jsonl"
BY_NAME = {stack.name: stack for stack in STACKS}


def installed(stack: Stack, **changed: str | None) -> dict[str, str | None]:
    names = ("torch", "torchvision", "aihwkit", "numpy")
    return {name: getattr(stack, name) for name in names} | FLAVOURS[stack.openmmlab] | changed


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
def test_each_stack_is_recognised(stack: Stack) -> None:
    verdict = judge(number(stack.python), installed(stack))
    assert verdict.state == (BROKEN if stack.fault else TESTED)
    assert stack.name in verdict.detail
    if stack.fault:
        assert verdict.stack == "A-forks" and "torch==2.11.0" in verdict.install
    else:
        assert not verdict.install


def test_patch_versions_and_builds_do_not_count() -> None:
    stack = BY_NAME["A-forks"]
    assert judge((3, 11), installed(stack, torch="2.11.4+cpu", numpy="2.3.1")).state == TESTED


@pytest.mark.parametrize(
    ("python", "changed", "state", "words"),
    [
        ((3, 11), {"torch": "2.9.1"}, BROKEN, "needs torch 2.10 to 2.12"),
        ((3, 11), {"torch": "2.13.0"}, BROKEN, "compiled tile cannot be constructed"),
        ((3, 11), {"torch": None}, BROKEN, "torch not installed"),
        ((3, 12), {}, UNTESTED, "no stack has this Python"),
        ((3, 11), {"aihwkit": "1.3.0"}, UNTESTED, "no stack has this Python"),
        ((3, 11), {"onedl-mmcv": "2.4.0"}, UNTESTED, "these OpenMMLab packages"),
        ((3, 11), {"numpy": "3.0.0"}, UNTESTED, "with numpy 3.0.0"),
    ],
)
def test_what_is_no_stack(python, changed: dict[str, str | None], state: str, words: str) -> None:
    verdict = judge(python, installed(BY_NAME["A-forks"], **changed))
    assert verdict.state == state and words in verdict.detail


def test_flavours() -> None:
    assert flavour({}) == "none" and flavour({"mmcv": None}) == "none"
    assert flavour(FLAVOURS["upstream"]) == "upstream" and flavour(FLAVOURS["forks"]) == "forks"
    assert flavour(FLAVOURS["forks"] | {"mmcv": "2.1.0"}) == "mixed"


def test_doctor_says_it_with_a_command() -> None:
    good = check_stack((3, 11), installed(BY_NAME["A-upstream"]))
    assert good.status == OK and good.detail.startswith("tested as stack A-upstream") and not good.remedy
    bad = check_stack((3, 12), installed(BY_NAME["A-forks"], torch="2.14.0"))
    assert bad.status == NOTE and bad.detail.startswith("known not to work")
    assert '"torch==2.13.0" "torchvision==0.28.0" "aihwkit==1.2.0"' in bad.remedy and "B-forks" in bad.remedy


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
def test_what_is_called_tested_was(stack: Stack) -> None:
    records = {record["stack"]: record for record in map(json.loads, RESULTS.read_text().splitlines())}
    record = records[stack.name]
    assert record["compiled_tile"]["works"] == (not stack.fault)
    wanted = {"torch": stack.torch, "aihwkit": stack.aihwkit, "numpy": stack.numpy} | FLAVOURS[stack.openmmlab]
    found = {name: version.partition("+")[0] for name, version in record["versions"].items()}
    assert {name: found[name] for name in wanted} == wanted and found["python"].startswith(f"{stack.python}.")
    if not stack.fault:
        assert record["failed"] == 0 and record["passed"] > 1000
        assert record["tests"] == ("all" if stack.thorough else "without the slow ones")
