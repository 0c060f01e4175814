# ReRAM of Wan et al. (Nature 2022): programming noise that relaxes during the first two days, no drift in the mean.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="ReRAMWanPreset"),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference="1d",  # measured up to 2 days; later times are refused
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
