from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from mmengine.structures import InstanceData

import aihwkit_nabn.openmmlab  # noqa: F401
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.openmmlab.measure import evaluator_of

LOOP = {"type": "AnalogTestLoop", "rpu_config": {"type": "GaussianWeightNoisePreset", "sigma": 0.05}, "chips": 2}


@pytest.mark.parametrize("name", ["detector", "segmentor"])
def test_measures_digital_uncalibrated_and_every_method(request, name, tmp_path, capsys):
    case = request.getfixturevalue(name)
    cfg = case.cfg(tmp_path, load_from=str(case.checkpoint))
    cfg.test_cfg = {**LOOP, "methods": ["none", "population", "paired", "distill"], "max_samples": 8}
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    main = "coco/bbox_mAP" if name == "detector" else "mIoU"
    scenario = "gaussian:sigma=0.05"
    for label in ("uncalibrated", "population", "paired", "distill"):
        assert f"{scenario}/{label}/{main}" in metrics
    assert f"digital/{main}" in metrics
    stored = torch.load(case.checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(stored[key], value) for key, value in runner.model.state_dict().items())
    folders = list(tmp_path.glob("*/analog"))
    assert len(folders) == 1
    result = EvaluationResult.from_json(folders[0] / "results.json")
    assert len(result.records) == 2 * 4 and result.metrics[0] == main
    lines = [json.loads(line) for line in (folders[0] / "records.jsonl").read_text().splitlines()]
    assert [line["record"]["method"] for line in lines if "record" in line][:2] == ["uncalibrated", "population"]
    printed = capsys.readouterr().out
    assert "uncalibrated" in printed and "every metric" in printed and scenario in printed
    scalars = list(tmp_path.glob("*/vis_data/scalars.json")) + list(tmp_path.glob("*/vis_data/*.json"))
    assert any("paired" in path.read_text() for path in scalars)


def test_several_noise_settings_and_times(detector, tmp_path):
    cfg = detector.cfg(tmp_path, load_from=str(detector.checkpoint))
    cfg.test_cfg = {
        **LOOP,
        "rpu_config": [{"type": "PCMPreset"}, "gaussian:sigma=0.1"],
        "t_inference": ["1h", "1y"],
        "methods": ["paired", {"method": "population", "pipeline": "test", "label": "population, plain"}],
        "chips": 1,
        "max_samples": 4,
    }
    runner = Runner.from_cfg(cfg)
    runner.test()
    result = runner.test_loop.result
    assert result.to_frame()["scenario"].unique().tolist() == ["pcm, 1h", "pcm, 1y", "gaussian:sigma=0.1"]
    assert result.methods == ["uncalibrated", "paired", "population, plain"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rpu_config": {"type": "PCNPreset"}}, "unknown preset 'PCNPreset'"),
        ({"rpu_config": {"type": "PCMPreset", "sigmaa": 1}}, "sigmaa"),
        ({"methods": ["piared"]}, "did you mean 'paired'"),
        ({"methods": []}, "methods"),
        ({"chips": 0}, "chips"),
        ({"pipeline": "val"}, "pipeline"),
        ({"t_inference": "-1d"}, "time"),
        ({"exclude": ["no_such_layer"]}, "no_such_layer"),
    ],
)
def test_bad_settings_are_named(detector, tmp_path, changes, message):
    cfg = detector.cfg(tmp_path, load_from=str(detector.checkpoint))
    cfg.test_cfg = {**LOOP, "max_samples": 4, **changes}
    runner = Runner.from_cfg(cfg)
    with pytest.raises(NabnError, match=message):
        runner.test()


def test_a_network_without_a_checkpoint_is_refused(detector, tmp_path):
    cfg = detector.cfg(tmp_path)
    cfg.test_cfg = LOOP
    with pytest.raises(NabnError, match="no checkpoint has been loaded"):
        Runner.from_cfg(cfg).test()


def test_weights_under_another_trainers_names_are_measured_as_they_are(detector, tmp_path):
    state = torch.load(detector.checkpoint, weights_only=True)["state_dict"]
    foreign = {f"model._orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": foreign, "pytorch-lightning_version": "2.5.0"}, tmp_path / "last.ckpt")
    digital = []
    for number, path in enumerate((detector.checkpoint, tmp_path / "last.ckpt")):
        cfg = detector.cfg(tmp_path / str(number), load_from=str(path), **{"test_dataloader.dataset.indices": 2})
        cfg.test_cfg = {**LOOP, "methods": ["none"], "chips": 1}
        runner = Runner.from_cfg(cfg)
        runner.test()
        digital.append(runner.test_loop.result.digital)
        assert all(torch.equal(state[name], value) for name, value in runner.model.state_dict().items())
    assert digital[0] == digital[1]


def test_the_train_set_must_be_there(detector, tmp_path):
    cfg = detector.cfg(tmp_path, load_from=str(detector.checkpoint))
    cfg.train_dataloader.dataset.ann_file = "gone.json"
    cfg.test_cfg = LOOP
    with pytest.raises(NabnError, match=r"train_dataloader\.dataset.*gone\.json"):
        Runner.from_cfg(cfg).test()


def test_a_limited_test_set_is_measured_on_its_own_images(detector, tmp_path):
    """Boxes that are all right score 1, however few images are tested."""
    cfg = detector.cfg(tmp_path, load_from=str(detector.checkpoint), **{"test_dataloader.dataset.indices": 2})
    cfg.test_cfg = LOOP
    runner = Runner.from_cfg(cfg)
    truth = json.loads(Path(runner.test_loop.dataloader.dataset.ann_file).read_text())["annotations"]

    class Oracle(torch.nn.Module):
        def test_step(self, batch):
            for sample in batch["data_samples"]:
                mine = [entry for entry in truth if entry["image_id"] == sample.img_id]
                boxes = torch.tensor([entry["bbox"] for entry in mine], dtype=torch.float32)
                boxes[:, 2:] += boxes[:, :2]
                labels = torch.tensor([entry["category_id"] for entry in mine]) - truth_offset
                sample.pred_instances = InstanceData(bboxes=boxes, labels=labels, scores=torch.ones(len(mine)))
            return batch["data_samples"]

    truth_offset = min(entry["category_id"] for entry in truth)
    metrics = evaluator_of(runner.test_loop)(Oracle())
    assert metrics["coco/bbox_mAP"] == pytest.approx(1.0)


@pytest.mark.parametrize("with_masks", [False, True])
def test_a_chip_that_finds_nothing_scores_nothing(detector, tmp_path, with_masks):
    """Upstream's metric gives no numbers at all where no image has a box."""
    cfg = detector.cfg(tmp_path, load_from=str(detector.checkpoint))
    cfg.test_cfg = LOOP
    cfg.test_evaluator.metric = ["bbox", "segm"] if with_masks else "bbox"
    runner = Runner.from_cfg(cfg)

    class Guess(torch.nn.Module):
        def __init__(self, n):
            super().__init__()
            self.n = n

        def test_step(self, batch):
            for sample in batch["data_samples"]:
                n, size = self.n, sample.ori_shape
                sample.pred_instances = InstanceData(
                    bboxes=torch.tensor([[1.0, 2.0, 9.0, 9.0]]).repeat(n, 1),
                    labels=torch.zeros(n, dtype=torch.long),
                    scores=torch.ones(n),
                )
                if with_masks:
                    sample.pred_instances.masks = torch.zeros(n, *size, dtype=torch.bool)
            return batch["data_samples"]

    eval_fn = evaluator_of(runner.test_loop, per_class=True)
    nothing, one = eval_fn(Guess(0)), eval_fn(Guess(1))
    assert nothing.keys() == one.keys()
    assert nothing["coco/bbox_mAP"] == 0.0
    assert set(nothing.values()) <= {0.0, -1.0}  # -1: no object of this size in the set
    assert {name for name, value in nothing.items() if value == -1} == {
        name for name, value in one.items() if value == -1
    }
    if with_masks:
        assert nothing["coco/segm_mAP"] == 0.0
