# Converters and output noise alone: 8-bit inputs and outputs around weights that are nearly exact.
# Every preset takes these options: inp_bits, inp_bound, out_bits, out_bound, out_noise, w_noise, w_noise_type, ir_drop,
# input_range.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="GaussianWeightNoisePreset", sigma=0.01, inp_bits=8, out_bits=8, out_noise=0.04),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference=0.0,  # this noise does not change with time
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
