"""The forward options of presets, in aihwkit's terms, and the standard crossbar made of them."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
from aihwkit.simulator.parameters import IOParameters
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType, WeightNoiseType
from aihwkit.simulator.presets import StandardHWATrainingPreset

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise.pcm import PCM
from aihwkit_nabn.simulator import build_preset, get_preset, parse_preset, presets
from aihwkit_nabn.simulator.config.io_options import FORWARD_OPTIONS


def test_without_options_the_product_is_perfect():
    for options in ({}, dict.fromkeys(FORWARD_OPTIONS), {"input_range": False}):
        preset = build_preset("gaussian", **options)
        assert preset.forward.is_perfect and not preset.pre_post.input_range.enable
        assert preset.mapping.weight_scaling_omega == 0.0


@pytest.mark.parametrize(
    ("option", "value", "field", "expected"),
    [
        ("inp_bits", 8, "inp_res", 1 / 254),
        ("inp_bound", 0.9, "inp_bound", 0.9),
        ("out_bits", 9, "out_res", 1 / 510),
        ("out_bound", 12.0, "out_bound", 12.0),
        ("out_noise", 0.04, "out_noise", 0.04),
        ("w_noise", 0.0175, "w_noise", 0.0175),
        ("ir_drop", 1.0, "ir_drop", 1.0),
        ("input_range", True, "noise_management", NoiseManagementType.CONSTANT),
    ],
)
def test_each_option_alone_leaves_the_rest_ideal(option, value, field, expected):
    preset = build_preset("gaussian", **{option: value})
    forward = preset.forward
    assert not forward.is_perfect and getattr(forward, field) == pytest.approx(expected)
    ideal = {"inp_res": -1.0, "out_res": -1.0, "inp_bound": 1.0, "out_noise": 0.0, "w_noise": 0.0, "ir_drop": 0.0}
    ideal["noise_management"], ideal["bound_management"] = NoiseManagementType.CONSTANT, BoundManagementType.NONE
    if option == "w_noise":  # in proportion to the inputs, which need no scale then
        ideal["noise_management"], ideal["inp_bound"] = NoiseManagementType.NONE, 0.0
    ideal["out_bound"] = 10.0 if option == "out_bits" else 0.0  # 0: unlimited
    assert {name: getattr(forward, name) for name in ideal if name != field} == {
        name: value for name, value in ideal.items() if name != field
    }
    assert preset.pre_post.input_range.enable == (option != "w_noise")
    if option != "input_range":
        by_vector = build_preset("gaussian", **{option: value, "input_range": False})
        assert not by_vector.pre_post.input_range.enable
        if option != "w_noise":
            assert by_vector.forward.noise_management == NoiseManagementType.ABS_MAX
    # They are given in units of the largest weight, so each column fills the range.
    assert preset.mapping.weight_scaling_omega == 1.0 and preset.mapping.weight_scaling_columnwise


def test_read_noise_has_a_type():
    assert build_preset("gaussian", w_noise=0.02).forward.w_noise_type == WeightNoiseType.PCM_READ
    forward = build_preset("gaussian", w_noise=0.02, w_noise_type="additive_constant").forward
    assert forward.w_noise_type == WeightNoiseType.ADDITIVE_CONSTANT
    assert build_preset("gaussian", w_noise=0.0).forward.w_noise_type == WeightNoiseType.NONE


def test_a_number_is_where_the_input_range_starts():
    preset = parse_preset("pcm:input_range=2.5,out_bits=8")
    assert preset.pre_post.input_range.enable and preset.pre_post.input_range.init_value == 2.5
    assert parse_preset("pcm:input_range=true").pre_post.input_range.init_value == 3.0


def test_the_crossbar_is_aihwkits_standard_one():
    preset, theirs = presets.StandardCrossbarPreset(), StandardHWATrainingPreset()
    for item in dataclasses.fields(IOParameters):
        ours, reference = getattr(preset.forward, item.name), getattr(theirs.forward, item.name)
        if item.name in ("inp_res", "out_res"):
            reference = 1 / reference  # given as a number of steps there
        assert ours == pytest.approx(reference) if isinstance(ours, float) else ours == reference, item.name
    assert preset.pre_post.input_range == theirs.pre_post.input_range
    mapping = preset.mapping
    assert (mapping.max_input_size, mapping.max_output_size) == (512, 512)
    assert mapping.weight_scaling_omega == 1.0 and mapping.weight_scaling_columnwise and mapping.digital_bias
    assert preset.noise_model == PCM() and type(preset.drift_compensation) is type(theirs.drift_compensation)


def test_the_crossbar_is_found_changed_and_copied():
    for text in ("crossbar", "StandardCrossbarPreset", "standard-crossbar", "CROSSBAR"):
        assert get_preset(text) is presets.StandardCrossbarPreset
    preset = parse_preset("crossbar:ir_drop=0,w_noise=none,out_bits=none,noise_scale=0.5,drift_compensation=none")
    assert preset.forward.ir_drop == 0.0 and preset.forward.out_res == -1.0 and preset.forward.inp_res == 1 / 254
    assert preset.noise_model == PCM(noise_scale=0.5) and preset.drift_compensation is None
    for twin in (copy.deepcopy(preset), pickle.loads(pickle.dumps(preset))):
        assert type(twin) is type(preset) and twin == preset and str(twin) == str(preset)
    assert presets.StandardCrossbarPreset(forward=IOParameters()).forward == IOParameters()
    assert not build_preset("crossbar", input_range=False).pre_post.input_range.enable


def test_compositions_take_forward_options_from_any_part():
    preset = parse_preset("pcm:out_bits=8+stuck:p_off=0.02,inp_bits=7")
    assert preset.forward.out_res == 1 / 254 and preset.forward.inp_res == 1 / 126
    crossbar = parse_preset("crossbar:ir_drop=0+stuck:p_off=0.02")
    expected = build_preset("crossbar", ir_drop=0)
    assert crossbar.forward == expected.forward and crossbar.pre_post == expected.pre_post


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inp_bits": 1}, "inp_bits must be an integer >= 2, got 1"),
        ({"out_bits": 8.5}, "out_bits must be an integer >= 2, got 8.5"),
        ({"out_bits": 40}, "out_bits must be an integer from 2 to 24 or None, got 40"),
        ({"inp_bound": 0}, "inp_bound must be a finite number > 0"),
        ({"out_bound": -1}, "out_bound must be a finite number > 0"),
        ({"out_noise": -0.1}, "out_noise must be a finite number >= 0"),
        ({"w_noise": "much"}, "w_noise must be a finite number >= 0, got 'much'"),
        ({"w_noise_type": "pcm_read"}, "w_noise_type='pcm_read' says how read noise grows; give its strength, w_noise"),
        ({"w_noise": 0.1, "w_noise_type": "pcm"}, "w_noise_type must be 'pcm_read' or 'additive_constant', got 'pcm'"),
        ({"ir_drop": -1}, "ir_drop must be"),
        ({"input_range": 0.0}, "input_range must be true, false, None or a finite number > 0, got 0.0"),
        ({"input_range": "static"}, "input_range must be"),
        ({"inp_bit": 8}, "has no option 'inp_bit', did you mean 'inp_bits'"),
        ({"forward": IOParameters(), "out_bits": 8}, "forward already says out_bits"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(NabnError, match=message):
        build_preset("pcm", **options)
