# Thermal crosstalk: cells warm themselves and their neighbours by the power they burn, and conduct otherwise when warm.
# Our own first-order model (after Pande et al. 2023, whose equations could not be read); all constants have names.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="ThermalCrosstalkPreset", thermal_resistance_k_per_uw=1.0, coupling=0.3),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference=0.0,  # this noise does not change with time
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
