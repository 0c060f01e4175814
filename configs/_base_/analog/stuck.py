# Stuck devices: each device of a pair is off (p_off) or at its largest conductance (p_on) for the life of the chip.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="StuckDevicesPreset", p_off=0.01, p_on=0.001),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference=0.0,  # this noise does not change with time
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
