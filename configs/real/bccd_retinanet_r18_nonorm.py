# The same detector without BatchNorm in neck and head: those layers only `paired` and `distill` can calibrate.
_base_ = ["./bccd_retinanet_r18.py"]
model = dict(neck=dict(norm_cfg=None), bbox_head=dict(norm_cfg=None))
train_cfg = dict(max_epochs=20)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=20, eta_min=1e-5, convert_to_iter_based=True),
]
