# SegFormer on five HERMES chips after a day; almost no batch normalization, so methods that align layers are compared.
_base_ = ["../_base_/mmseg.py", "mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py"]

custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
test_cfg = dict(
    type="AnalogTestLoop",
    rpu_config=dict(type="HermesPreset"),
    t_inference="1d",
    methods=["none", "paired", "distill"],
    chips=5,
    max_samples=256,
)
