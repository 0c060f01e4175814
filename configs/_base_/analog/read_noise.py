# Read noise alone: every product reads the weights anew, off by 0.0175 of the largest one at full conductance, less for
# small weights (w_noise_type="pcm_read"; "additive_constant" for all alike). Programming is perfect.
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="AnalogHook",
        rpu_config=dict(type="GaussianWeightNoisePreset", sigma=0.0, w_noise=0.0175),
        seed=0,  # which chip: the same seed is the same chip everywhere
        t_inference=0.0,  # this noise does not change with time
        calibration=dict(max_samples=256),  # None: the chip as programmed
        exclude=[],  # names of modules that stay digital; * and ? match
    )
]
