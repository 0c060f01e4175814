# Blood cells (BCCD, COCO format): RTMDet-tiny as upstream builds it, 76 layers deep, trained from scratch.
#
#   NABN_DATA=FOLDER python MMDET/.mim/tools/train.py configs/real/bccd_rtmdet_tiny.py
#
# with the data in FOLDER/bccd (train/, val/, train.json, val.json); without the variable, in data/bccd.
_base_ = ["mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"]
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
data_root = "{{$NABN_DATA:data}}/bccd/"
# Upstream's weights from ImageNet are left out, and so are its moving averages: 205 images are too few steps for them.
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(init_cfg=None),
    bbox_head=dict(num_classes=3),
)
custom_hooks = []

meta = dict(classes=("RBC", "WBC", "Platelets"))
train_steps = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(320, 240), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5, direction=["horizontal", "vertical"]),
    dict(type="PackDetInputs"),
]
test_steps = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(320, 240), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
_loading = dict(num_workers=0, persistent_workers=False, pin_memory=False)
train_dataloader = dict(
    batch_size=5,
    dataset=dict(
        data_root=data_root,
        ann_file="train.json",
        data_prefix=dict(img="train/"),
        metainfo=meta,
        pipeline=train_steps,
    ),
    **_loading,
)
val_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_root=data_root, ann_file="val.json", data_prefix=dict(img="val/"), metainfo=meta, pipeline=test_steps
    ),
    **_loading,
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "val.json")
test_evaluator = val_evaluator

EPOCHS = 24
train_cfg = dict(max_epochs=EPOCHS, val_interval=8, dynamic_intervals=None)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    clip_grad=dict(max_norm=35.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=EPOCHS, eta_min=1e-5, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=4, max_keep_ckpts=-1, save_optimizer=False),
)
randomness = dict(seed=0)
