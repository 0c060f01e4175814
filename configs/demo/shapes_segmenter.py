# A tiny FCN on the drawn shapes, with BatchNorm everywhere. Its data are generated:
#
#   python -m aihwkit_nabn.data.shapes data/shapes
#   python MMSEG/.mim/tools/test.py configs/demo/shapes_segmenter.py aihwkit_nabn/data/checkpoints/shapes_segmenter.pth
#
# With NABN_DATA=FOLDER they are looked for in FOLDER/shapes; `nabn demo` makes them in nabn_results/demo/data.
# Training: MMSEG/.mim/tools/train.py, or python tools/train_demo.py.
default_scope = "mmseg"
data_root = "{{$NABN_DATA:data}}/shapes/"
norm = dict(type="BN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[128.0, 128.0, 128.0],
        std=[64.0, 64.0, 64.0],
        bgr_to_rgb=True,
        size=(96, 96),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="ResNetV1c",
        depth=18,
        base_channels=16,
        stem_channels=16,
        num_stages=3,
        strides=(1, 2, 1),
        dilations=(1, 1, 2),
        out_indices=(0, 1, 2),
        norm_cfg=norm,
        norm_eval=False,
        style="pytorch",
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=64,
        in_index=2,
        channels=32,
        num_convs=2,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=4,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

meta = dict(
    classes=("background", "circle", "rectangle", "triangle"),
    palette=[[0, 0, 0], [220, 60, 60], [60, 180, 75], [65, 105, 225]],
)
train_steps = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
_part = dict(
    type="BaseSegDataset",
    data_root=data_root,
    metainfo=meta,
    img_suffix=".png",
    seg_map_suffix=".png",
    reduce_zero_label=False,
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(data_prefix=dict(img_path="train", seg_map_path="train_masks"), pipeline=train_steps, **_part),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path="val", seg_map_path="val_masks"), pipeline=test_steps, test_mode=True, **_part
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=30, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=4e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=30, eta_min=1e-5, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=25),
    checkpoint=dict(type="CheckpointHook", interval=30, max_keep_ckpts=1, save_optimizer=False),
)
log_processor = dict(by_epoch=True)
randomness = dict(seed=0)
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
