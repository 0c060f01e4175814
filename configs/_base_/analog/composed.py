# Several effects on one chip: phase-change memory, of which one device in a hundred is dead, read through references
# that are off. The command line writes it pcm+stuck:p_off=0.01+reference_current:sigma=0.05.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(
            type="ComposedPreset",
            effects=[
                dict(type="PCMPreset"),
                dict(type="StuckDevicesPreset", p_off=0.01, p_on=0.0),
                dict(type="ReferenceCurrentVariationPreset", sigma=0.05),
            ],
        ),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference="1d",  # seconds, or 1s, 1h, 1d, 1y; up to 10 years
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
