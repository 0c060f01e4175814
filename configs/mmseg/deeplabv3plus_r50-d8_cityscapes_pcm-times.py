# DeepLabV3+ on five phase-change memory chips after an hour, a day and a year; one table of every method.
_base_ = ["../_base_/mmseg.py", "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024.py"]

custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
test_cfg = dict(
    type="AnalogTestLoop",
    rpu_config=dict(type="PCMPreset"),
    t_inference=["1h", "1d", "1y"],
    methods=["none", "population", "paired"],
    chips=5,
    max_samples=256,
)
