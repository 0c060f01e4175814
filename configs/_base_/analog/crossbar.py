# The standard crossbar of Rasch et al. 2023: 8-bit converters, read noise, output noise, IR drop, drifting PCM devices.
# Any of its options can be given another value, e.g. ir_drop=0.0 or out_bits=9.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="StandardCrossbarPreset"),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference="1d",  # seconds, or 1s, 1h, 1d, 1y; up to 10 years
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
