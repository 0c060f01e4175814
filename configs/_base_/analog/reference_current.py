# Reference currents that are off: every output of a tile has a gain error, half of its variance shared by the tile.
# Our own model (after Ahmed 2023, whose equations could not be read).
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="ReferenceCurrentVariationPreset", sigma=0.1, shared=0.5),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference=0.0,  # this noise does not change with time
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
