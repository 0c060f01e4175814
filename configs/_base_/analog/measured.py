# Your own device, from a file that `nabn fit MEASUREMENTS.csv` wrote: fit="device.fit.json". Without it, a made-up one.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="MeasuredNoisePreset"),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference="1d",  # seconds, or 1s, 1h, 1d, 1y; up to 10 years
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
