# RTMDet-tiny on one phase-change memory chip after a day, calibrated.
# Its config has custom_hooks of its own, and mmengine replaces lists: they are named again, ours added.
_base_ = ["mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"]

custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type="AnalogHook",
        rpu_config=dict(type="PCMPreset"),
        seed=0,
        t_inference="1d",
        calibration=dict(max_samples=256),
        exclude=[],
    ),
]
