# Gaussian weight noise, additive: each weight is off by sigma times the layer's largest weight.
# The textbook setting; vary sigma between 0.02 (mild) and 0.10 (severe).
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="GaussianWeightNoisePreset", sigma=0.06, relative_to="max"),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference=0.0,  # this noise does not change with time
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
