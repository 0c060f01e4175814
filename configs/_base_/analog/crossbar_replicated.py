# The standard crossbar with what a mapper does for short columns, e.g. of depthwise convolutions: each is copied over
# the free rows of its tile and read as one sum (replicate_rows). The ADC of each tile has a range set from images.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="StandardCrossbarPreset", replicate_rows=True, output_range=True),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference="1d",  # seconds, or 1s, 1h, 1d, 1y; up to 10 years
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
