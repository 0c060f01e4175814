# Road scenes (CamVid, 240 x 180): a small FCN with BatchNorm, trained from scratch.
#
#   NABN_DATA=FOLDER python MMSEG/.mim/tools/train.py configs/real/camvid_fcn_r18.py
#
# with the data in FOLDER/camvid (train/, trainannot/, val/, valannot/); without the variable, in data/camvid.
default_scope = "mmseg"
custom_imports = dict(imports=["aihwkit_nabn.openmmlab"], allow_failed_imports=False)
data_root = "{{$NABN_DATA:data}}/camvid/"
norm = dict(type="BN", requires_grad=True)
VOID = 11
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=16,
        pad_val=0,
        seg_pad_val=VOID,
        test_cfg=dict(size_divisor=16),
    ),
    backbone=dict(
        type="ResNetV1c",
        depth=18,
        base_channels=32,
        stem_channels=32,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        out_indices=(0, 1, 2, 3),
        norm_cfg=norm,
        norm_eval=False,
        style="pytorch",
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=256,
        channels=64,
        num_convs=2,
        concat_input=False,
        num_classes=11,
        ignore_index=VOID,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

meta = dict(
    classes=(
        'Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree', 'SignSymbol', 'Fence', 'Car', 'Pedestrian', 'Bicyclist'
    ),
    palette=[
        [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0], [192, 128, 128],
        [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
    ],
)  # fmt: skip
train_steps = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(240, 180), ratio_range=(0.8, 1.6), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(144, 192), cat_max_ratio=0.9),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
_part = dict(
    type="BaseSegDataset",
    data_root=data_root,
    metainfo=meta,
    ignore_index=VOID,
    img_suffix=".jpg",
    seg_map_suffix=".png",
    reduce_zero_label=False,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(data_prefix=dict(img_path="train", seg_map_path="trainannot"), pipeline=train_steps, **_part),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path="val", seg_map_path="valannot"), pipeline=test_steps, test_mode=True, **_part
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"], ignore_index=VOID)
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=40, val_interval=20)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=0.9, eta_min=1e-5, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=20),
    checkpoint=dict(type="CheckpointHook", interval=40, max_keep_ckpts=1, save_optimizer=False),
)
randomness = dict(seed=0)
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
