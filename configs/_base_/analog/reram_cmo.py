# Conductive-metal-oxide ReRAM (Falcone et al. 2025), one device per weight; acceptance_range_percent is that of the
# programming: 0.2 (accurate) or 2 (fast).
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="ReRAMCMOPreset", acceptance_range_percent=0.2),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference="1h",  # seconds, or 1s, 1h, 1d
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
