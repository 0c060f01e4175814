"""Labelled images of the train set that are not calibrated with; and placement files in hook and loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.runner import Runner

from aihwkit_nabn import load_workload
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.excluding import matrix_layers
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.openmmlab import AnalogHook, AnalogTestLoop
from aihwkit_nabn.openmmlab.batches import CalibrationImages
from aihwkit_nabn.openmmlab.config import build_digital
from aihwkit_nabn.openmmlab.held_back import measured_on_train_set
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings
from aihwkit_nabn.workloads.config import read_config
from tests.openmmlab.test_hook import NOISE, Spy, run
from tests.results.test_placement import PLACEMENT


def _files(dataset, numbers) -> set[str]:
    return {dataset.get_data_info(number)["img_path"] for number in numbers}


@pytest.mark.parametrize("name", ["detector", "segmentor"])
def test_images_that_are_not_calibrated_with_are_measured_on(name, request, tmp_path) -> None:
    case = request.getfixturevalue(name)
    config = read_config(str(case.path))
    found = measured_on_train_set(config, 100, n_calibrated=5, seed=3)
    assert found is not None
    dataset = found.test_dataloader.dataset
    assert "LoadAnnotations" in {step["type"] for step in dataset["pipeline"]}, "with labels"
    assert "RandomFlip" not in {step["type"] for step in dataset["pipeline"]}, "as at test time"
    whole = CalibrationImages(config, "plain", None, 1, 0).dataset
    calibrated = {
        file
        for kind in ("plain", "augmented")
        for images in [CalibrationImages(config, kind, 5, 1, 3)]
        for file in _files(images.dataset, images.indices)
    }
    searched = _files(whole, dataset["indices"])
    assert searched == _files(whole, range(len(whole))) - calibrated and 0 < len(searched) <= 7
    few = measured_on_train_set(config, 2, n_calibrated=5, seed=3)
    assert few is not None and set(few.test_dataloader.dataset["indices"]) < set(dataset["indices"])
    assert measured_on_train_set(config, 2, n_calibrated=12, seed=3) is None
    assert config.test_dataloader.dataset.get("indices") is None, "the config is as it was"


@pytest.mark.parametrize("name", ["detector", "segmentor"])
def test_a_workload_measures_on_them(name, request, tmp_path, capfd) -> None:
    case = request.getfixturevalue(name)
    workload = load_workload(str(case.path), LoadSettings(work_dir=tmp_path), checkpoint=str(case.checkpoint))
    assert workload.held_back is not None
    capfd.readouterr()
    eval_fn = workload.held_back(4, CalibrationRequest(n=5))
    assert eval_fn is not None and not any(capfd.readouterr()), "what upstream prints is in the logs"
    assert set(eval_fn(workload.model)) == set(workload.eval_fn(workload.model))
    assert workload.held_back(4, CalibrationRequest(n=None)) is None


def test_wrapped_train_sets(detector) -> None:
    config = read_config(str(detector.path))
    inner = config.train_dataloader.dataset
    plain = measured_on_train_set(config, None, n_calibrated=2, seed=0)
    assert plain is not None
    config.train_dataloader.dataset = {"type": "RepeatDataset", "times": 2, "dataset": inner}
    repeated = measured_on_train_set(config, None, n_calibrated=2, seed=0)
    assert repeated is not None and repeated.test_evaluator == plain.test_evaluator
    found = repeated.test_dataloader.dataset.indices
    assert len(set(found)) == len(found) <= 12, "each image once"
    config.train_dataloader.dataset = {"type": "ConcatDataset", "datasets": [inner, inner]}
    assert measured_on_train_set(config, 4, n_calibrated=2, seed=0) is None, "labels in several files"


def test_the_hook_takes_a_placement_file(detector, tmp_path: Path) -> None:
    layers = matrix_layers(build_digital(read_config(str(detector.path))))
    placement = replace(PLACEMENT, exclude=("backbone.conv1", "bbox_head.retina_cls"), layers=layers)
    file = placement.to_json(tmp_path / "placement.json")
    by_file, whole = Spy(NOISE, exclude=str(file)), Spy(NOISE)
    assert by_file.exclude == ("backbone.conv1", "bbox_head.retina_cls")
    assert "bbox_head.retina_cls" in by_file.settings
    run(detector, tmp_path, by_file)
    run(detector, tmp_path, whole)
    gone = set(named_analog_layers(whole.analog)) - set(named_analog_layers(by_file.analog))
    assert gone == set(by_file.exclude)
    with pytest.raises(NabnError, match=r"the placement .*other.json is of another network .* '0' .* this model lacks"):
        run(detector, tmp_path, AnalogHook(NOISE, exclude=PLACEMENT.to_json(tmp_path / "other.json")))


def test_the_loop_takes_a_placement_file(detector, tmp_path: Path) -> None:
    layers = matrix_layers(build_digital(read_config(str(detector.path))))
    file = replace(PLACEMENT, exclude=("backbone.conv1",), layers=layers).to_json(tmp_path / "placement.json")
    cfg = detector.cfg(tmp_path, load_from=str(detector.checkpoint))
    cfg.test_cfg = {
        "type": "AnalogTestLoop",
        "rpu_config": NOISE,
        "methods": ["none"],
        "chips": 1,
        "exclude": str(file),
    }
    runner = Runner.from_cfg(cfg)
    runner.test()
    assert isinstance(runner.test_loop, AnalogTestLoop)
    assert runner.test_loop.result.settings["exclude"] == ["backbone.conv1"]
