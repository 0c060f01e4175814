# Variational noise: weight noise that grows while images go through the chip, from start * sigma at the first image to
# sigma at image period_samples. Schedules: constant, ramp, sine, steps, walk. Method online follows it.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="VariationalNoisePreset", sigma=0.06, schedule="ramp", period_samples=1000, start=0.25),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference=0.0,  # this noise moves with the images, not with time
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
