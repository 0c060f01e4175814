# YOLOX-s on five chips at three strengths of additive weight noise; its own custom_hooks stay as they are.
_base_ = ["mmdet::yolox/yolox_s_8xb8-300e_coco.py"]

custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
test_cfg = dict(
    type="AnalogTestLoop",
    rpu_config=[
        dict(type="GaussianWeightNoisePreset", sigma=0.02, relative_to="max"),
        dict(type="GaussianWeightNoisePreset", sigma=0.04, relative_to="max"),
        dict(type="GaussianWeightNoisePreset", sigma=0.06, relative_to="max"),
    ],
    t_inference=0.0,
    methods=["none", "population", "paired"],
    chips=5,
    max_samples=256,
)
