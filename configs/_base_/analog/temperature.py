# A chip that works at another temperature than it was programmed at: conductances scale, each by a bit more or less.
# Our own model (after Ahmed 2023, whose equations could not be read).
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="TemperatureVariationPreset", mean_k=40.0, sigma_k=20.0),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference=0.0,  # this noise does not change with time
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
