from __future__ import annotations

import copy
import inspect

import pytest
import torch
from mmengine.runner import Runner
from torch import nn

from aihwkit_nabn.calibration import calibrate
from aihwkit_nabn.chip.variation import samples_processed
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn import calibration_tensors
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.openmmlab import AnalogHook, AnalogTestLoop
from aihwkit_nabn.openmmlab.batches import CalibrationImages
from aihwkit_nabn.openmmlab.checkpoints import CHIP_KEY
from aihwkit_nabn.openmmlab.hook import RANGE_IMAGES
from tests.tensors import equal, generator_states

NOISE = {"type": "GaussianWeightNoisePreset", "sigma": 0.05}
PAIRED = {"method": "paired", "max_samples": 8, "batch_size": 4}


class Spy(AnalogHook):
    """Keeps the analog model for a look after the test."""

    def after_test(self, runner):
        self.analog = self.chip
        super().after_test(runner)


def run(case, tmp_path, hook, **changes):
    cfg = case.cfg(tmp_path, **{"load_from": str(case.checkpoint), **changes})
    runner = Runner.from_cfg(cfg)
    runner.register_hook(hook)
    return runner, runner.test()


@pytest.mark.parametrize("name", ["detector", "segmentor"])
@pytest.mark.parametrize("method", ["paired", "population"])
def test_the_model_is_tested_as_a_calibrated_chip(request, name, method, tmp_path):
    case = request.getfixturevalue(name)
    hook = Spy(NOISE, seed=3, t_inference="1h", calibration={**PAIRED, "method": method})
    runner, _ = run(case, tmp_path, hook)
    assert named_analog_layers(hook.analog) and not named_analog_layers(runner.model)
    assert not any(module.training for module in hook.analog.modules())
    assert hook.analog.chip_state.seed == 3 and hook.analog.chip_state.t_inference == 3600.0
    kinds = {key.rpartition(".")[2] for key in calibration_tensors(hook.analog)}
    assert kinds == ({"scale", "offset"} if method == "paired" else {"mean", "var"})
    stored = torch.load(case.checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(stored[key], value) for key, value in runner.model.state_dict().items())


def test_a_chip_under_test_time_augmentation_is_calibrated_on_plain_images(segmentor, tmp_path):
    plain = Spy(NOISE, calibration=PAIRED)
    run(segmentor, tmp_path, plain)
    cfg = segmentor.cfg(tmp_path, load_from=str(segmentor.checkpoint))
    flips = [{"type": "RandomFlip", "prob": prob} for prob in (0.0, 1.0)]
    steps = [flips, [{"type": "LoadAnnotations"}], [{"type": "PackSegInputs"}]]
    cfg.val_dataloader, cfg.val_evaluator, cfg.val_cfg = cfg.test_dataloader, cfg.test_evaluator, {"type": "ValLoop"}
    cfg.test_dataloader = copy.deepcopy(cfg.test_dataloader)  # as the upstream tool's --tta has it
    cfg.test_dataloader.dataset.pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "TestTimeAug", "transforms": steps},
    ]
    cfg.model = {"type": "SegTTAModel", "module": cfg.model}
    runner = Runner.from_cfg(cfg)
    hook = Spy(NOISE, calibration=PAIRED)
    runner.register_hook(hook)
    assert runner.test()
    found, expected = calibration_tensors(hook.analog), calibration_tensors(plain.analog)
    assert {key.removeprefix("module."): value.shape for key, value in found.items()} == {
        key: value.shape for key, value in expected.items()
    }


def test_the_same_seed_is_the_same_chip_and_another_is_not(detector, tmp_path):
    weights = []
    for seed in (1, 1, 2):
        torch.rand(seed)
        hook = Spy(NOISE, seed=seed, calibration=PAIRED)
        run(detector, tmp_path, hook)
        layer = next(iter(named_analog_layers(hook.analog).values()))
        weights.append((layer.weight, layer.alignment.scale))
    assert torch.equal(weights[0][0], weights[1][0]) and torch.equal(weights[0][1], weights[1][1])
    assert not torch.equal(weights[0][0], weights[2][0])


def test_a_head_shared_by_the_pyramid_is_one_tile_and_frozen_stages_convert(detector, tmp_path):
    hook = Spy(NOISE, calibration=PAIRED)
    run(detector, tmp_path, hook)
    heads = [name for name in named_analog_layers(hook.analog) if "bbox_head" in name]
    assert sorted(heads) == [
        "bbox_head.cls_convs.0.conv", "bbox_head.reg_convs.0.conv", "bbox_head.retina_cls", "bbox_head.retina_reg"
    ]  # fmt: skip
    assert "backbone.layer1.0.conv1" in named_analog_layers(hook.analog)  # norm_eval and frozen_stages=1


def test_validation_while_training_is_on_the_chip_and_training_goes_on_digital(detector, tmp_path):
    seen = []

    class Val(AnalogHook):
        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(bool(named_analog_layers(runner.model)))

    cfg = detector.cfg(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Val(NOISE, calibration=PAIRED))
    runner.train()
    assert seen == [True] * 2 and not named_analog_layers(runner.model)
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=True)  # importing us allowed mmengine's own classes
    assert CHIP_KEY not in saved and "backbone.conv1.weight" in saved["state_dict"]


STORED = [NOISE, {"type": "VariationalNoisePreset", "period_samples": 10}, {"type": "StandardCrossbarPreset"}]


@pytest.mark.parametrize("noise", STORED, ids=["static", "moving", "input ranges"])
def test_a_chip_written_after_a_test_is_tested_again_without_calibrating(detector, tmp_path, noise):
    first = Spy(noise, seed=4, calibration=PAIRED, out_file="chip.pth")
    _, metrics = run(detector, tmp_path, first)
    again = Spy(noise, seed=4, calibration=PAIRED)
    again._calibrate = None  # would fail if it were called
    _, repeated = run(detector, tmp_path, again, load_from=str(tmp_path / "chip.pth"))
    assert repeated == metrics
    a, b = calibration_tensors(first.analog), calibration_tensors(again.analog)
    assert any(key.endswith("input_range") for key in a) == (noise is STORED[2])
    assert equal(a, b)
    stored = torch.load(tmp_path / "chip.pth", weights_only=True)
    digital = torch.load(detector.checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(stored["state_dict"][key], digital[key]) for key in digital)


def test_a_chip_of_other_settings_or_weights_is_not_taken(detector, tmp_path):
    run(detector, tmp_path, Spy(NOISE, seed=4, calibration=PAIRED, out_file="chip.pth"))
    other = Spy(NOISE, seed=5, calibration=None)
    run(detector, tmp_path, other, load_from=str(tmp_path / "chip.pth"))
    assert calibration_tensors(other.analog) == {}
    content = torch.load(tmp_path / "chip.pth", weights_only=True)
    content["state_dict"]["backbone.conv1.weight"] += 0.1
    torch.save(content, tmp_path / "changed.pth")
    with pytest.raises(NabnError, match=r"backbone\.conv1.*not the one in the checkpoint"):
        run(detector, tmp_path, Spy(NOISE, seed=4, calibration=PAIRED), load_from=str(tmp_path / "changed.pth"))


def test_a_runner_saves_the_chip_beside_the_digital_weights(detector, tmp_path):
    class Saves(AnalogHook):
        def after_test(self, runner):
            runner.save_checkpoint(str(tmp_path), "saved.pth", save_optimizer=False, save_param_scheduler=False)
            super().after_test(runner)

    run(detector, tmp_path, Saves(NOISE, seed=4, calibration=PAIRED))
    saved = torch.load(tmp_path / "saved.pth", weights_only=True)
    assert not [key for key in saved["state_dict"] if "analog" in key]
    assert set(saved[CHIP_KEY]) == {"version", "settings", "weights", "calibration"}


def test_calibration_images_are_seeded_unlabelled_and_through_the_right_pipeline(detector):
    cfg = detector.cfg()
    plain = CalibrationImages(cfg, "plain", 6, 4, seed=1)
    twice = [[batch["inputs"] for batch in plain] for _ in range(2)]
    assert [len(inputs) for inputs in twice[0]] == [4, 2]
    assert equal(*twice)
    assert all(len(sample.gt_instances) == 0 for batch in plain for sample in batch["data_samples"])
    assert plain.indices != CalibrationImages(cfg, "plain", 6, 4, seed=2).indices
    augmented = CalibrationImages(cfg, "augmented", 6, 4, seed=1)
    assert augmented.indices == plain.indices
    flipped = [sample.flip for batch in augmented for sample in batch["data_samples"]]
    assert set(flipped) == {True, False}
    state = generator_states()
    list(augmented)
    assert generator_states() == state


def test_wrapped_train_sets_are_unwrapped_for_the_test_pipeline(detector):
    cfg = detector.cfg()
    inner = cfg.train_dataloader.dataset.to_dict()
    mixed = {"type": "MultiImageMixDataset", "dataset": inner, "pipeline": [{"type": "Mosaic", "img_scale": (64, 64)}]}
    for wrapped in (mixed, {"type": "RepeatDataset", "times": 2, "dataset": inner}):
        cfg.train_dataloader.dataset = wrapped
        batch = next(iter(CalibrationImages(cfg, "plain", 2, 2, seed=0)))
        assert all(image.shape == (3, 64, 48) for image in batch["inputs"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rpu_config": {"type": "PCNPreset"}}, "unknown preset 'PCNPreset'"),
        ({"rpu_config": {}}, "rpu_config must be"),
        ({"rpu_config": NOISE, "calibration": {"method": "piared"}}, "did you mean 'paired'"),
        ({"rpu_config": NOISE, "calibration": "paired"}, r"calibration must be None, True \(method 'auto'\) or"),
        ({"rpu_config": NOISE, "calibration": {"method": None}}, "calibration must be .* got {'method': None}"),
        ({"rpu_config": NOISE, "calibration": {**PAIRED, "max_samples": 0}}, "calibration.max_samples"),
        ({"rpu_config": NOISE, "calibration": {**PAIRED, "pipeline": "val"}}, "pipeline must be"),
        ({"rpu_config": NOISE, "calibration": {**PAIRED, "shrinkk": 1}}, "shrinkk"),
        ({"rpu_config": NOISE, "seed": -1}, "seed"),
        ({"rpu_config": NOISE, "t_inference": "1 fortnight"}, "time"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(NabnError, match=message):
        AnalogHook(**arguments)


def test_the_default_method_is_that_of_calibrate():
    default = inspect.signature(calibrate).parameters["method"].default
    short, long = AnalogHook(NOISE, calibration={"max_samples": 48}), AnalogHook(NOISE, calibration=True)
    assert short.method.name == long.method.name == default
    assert (short.options["max_samples"], long.options["max_samples"]) == (48, 256)
    spelled = AnalogHook(NOISE, calibration={"method": default, "max_samples": 48})
    assert short.settings == spelled.settings and short.method.name == default
    # The chip as programmed has the input ranges that it has when it is calibrated.
    of_loop = inspect.signature(AnalogTestLoop).parameters["max_samples"].default
    assert RANGE_IMAGES == long.options["max_samples"] == of_loop
    assert AnalogHook(NOISE, calibration=False).method is AnalogHook(NOISE, calibration=None).method is None


def test_a_network_without_a_checkpoint_is_refused(detector, tmp_path):
    with pytest.raises(NabnError, match="no checkpoint has been loaded"):
        run(detector, tmp_path, AnalogHook(NOISE), load_from=None)


def test_the_train_set_must_be_there(detector, tmp_path):
    changes = {"train_dataloader.dataset.ann_file": "gone.json"}
    with pytest.raises(NabnError, match=r"train_dataloader\.dataset.*gone\.json"):
        run(detector, tmp_path, AnalogHook(NOISE, calibration=PAIRED), **changes)


def test_a_model_with_nothing_to_convert_is_refused(detector, tmp_path):
    with pytest.raises(NabnError, match="no layer to put on tiles"):
        run(detector, tmp_path, AnalogHook(NOISE, exclude=["backbone", "neck", "bbox_head"]))


def test_sync_batchnorm_becomes_noise_aware(segmentor, tmp_path):
    hook = Spy(NOISE, calibration={**PAIRED, "method": "population"})
    run(segmentor, tmp_path, hook)
    assert not [m for m in hook.analog.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert hook.analog.conversion_report.normalization


@pytest.mark.parametrize("name", ["detector", "segmentor"])
def test_noise_that_moves_counts_the_images(request, name, tmp_path):
    case = request.getfixturevalue(name)
    effects = [{"type": "VariationalNoisePreset", "period_samples": 10}, {"type": "StuckDevicesPreset"}]
    hook = Spy({"type": "ComposedPreset", "effects": effects}, seed=3, calibration=None)
    runner, _ = run(case, tmp_path, hook)
    assert samples_processed(hook.analog) == len(runner.test_dataloader.dataset)
