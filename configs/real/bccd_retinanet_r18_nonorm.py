# The same detector without BatchNorm in neck and head: those layers only `paired` and `distill` can calibrate.
_base_ = ["./bccd_retinanet_r18.py"]
model = dict(neck=dict(norm_cfg=None), bbox_head=dict(norm_cfg=None))
