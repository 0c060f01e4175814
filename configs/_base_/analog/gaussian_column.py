# Gaussian weight noise, additive: each weight is off by sigma times the largest weight of the same output channel.
# As if each column of a tile were programmed at full range and scaled back digitally; sigma from 0.02 to 0.10.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="GaussianWeightNoisePreset", sigma=0.06, relative_to="column"),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference=0.0,  # this noise does not change with time
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
