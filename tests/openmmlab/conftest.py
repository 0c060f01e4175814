"""A tiny detector and a tiny segmentor with drawn data, as config files for the upstream tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import torch
from mmengine.config import Config
from PIL import Image

DETECTOR = """
default_scope = 'mmdet'
custom_imports = dict(imports=['aihwkit_nabn.openmmlab'])
norm = dict(type='BN', requires_grad=True)
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, base_channels=8, num_stages=4, out_indices=(1, 2, 3), frozen_stages=1,
                  norm_cfg=norm, norm_eval=True, style='pytorch'),
    neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels=16, num_outs=3),
    bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=16, stacked_convs=1, feat_channels=16,
                   anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1,
                                         ratios=[1.0], strides=[8, 16, 32]),
                   bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
                   loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
                   loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
                                 ignore_iof_thr=-1), sampler=dict(type='PseudoSampler'), allowed_border=-1,
                   pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5),
                  max_per_img=20))
meta = dict(classes=('box', 'disc'))
train_steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
               dict(type='Resize', scale=(64, 64), keep_ratio=True), dict(type='RandomFlip', prob=0.5),
               dict(type='PackDetInputs')]
test_steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64), keep_ratio=True),
              dict(type='LoadAnnotations', with_bbox=True),
              dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                        dataset=dict(type='CocoDataset', data_root='ROOT', ann_file='train.json', metainfo=meta,
                                     data_prefix=dict(img='images'), pipeline=train_steps))
test_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                       dataset=dict(type='CocoDataset', data_root='ROOT', ann_file='val.json', metainfo=meta,
                                    data_prefix=dict(img='images'), test_mode=True, pipeline=test_steps))
val_dataloader = test_dataloader
test_evaluator = dict(type='CocoMetric', ann_file='ROOT/val.json', metric='bbox')
val_evaluator = test_evaluator
test_cfg = dict(type='TestLoop')
val_cfg = dict(type='ValLoop')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""

SEGMENTOR = """
default_scope = 'mmseg'
custom_imports = dict(imports=['aihwkit_nabn.openmmlab'])
norm = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, size_divisor=32, pad_val=0,
                           seg_pad_val=255),
    backbone=dict(type='ResNetV1c', depth=18, base_channels=8, stem_channels=8, norm_cfg=norm, style='pytorch'),
    decode_head=dict(type='FCNHead', in_channels=64, channels=16, num_convs=1, num_classes=3, norm_cfg=norm,
                     loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
meta = dict(classes=('ground', 'box', 'disc'), palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0]])
train_steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='RandomFlip', prob=0.5),
               dict(type='PackSegInputs')]
test_steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                        dataset=dict(type='BaseSegDataset', data_root='ROOT', metainfo=meta,
                                     img_suffix='.png', seg_map_suffix='.png',
                                     data_prefix=dict(img_path='train', seg_map_path='trainannot'),
                                     pipeline=train_steps))
test_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                       dataset=dict(type='BaseSegDataset', data_root='ROOT', metainfo=meta,
                                    img_suffix='.png', seg_map_suffix='.png',
                                    data_prefix=dict(img_path='val', seg_map_path='valannot'), test_mode=True,
                                    pipeline=test_steps))
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_cfg = dict(type='TestLoop')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""


def _draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[tuple[int, list[int]]]]:
    image = rng.integers(60, 120, (64, 48, 3), dtype=np.uint8)
    mask = np.zeros((64, 48), dtype=np.uint8)
    boxes = []
    for kind in (1, 2):
        x, y, size = (int(rng.integers(low, high)) for low, high in ((0, 28), (0, 44), (12, 20)))
        image[y : y + size, x : x + size, kind] = 230
        mask[y : y + size, x : x + size] = kind
        boxes.append((kind, [x, y, size, size]))
    return image, mask, boxes


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 training and 6 validation images, boxes and masks."""
    root = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("val", 6)):
        content: dict = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "box"}, {"id": 2, "name": "disc"}],
        }
        for folder in ("images", part, f"{part}annot"):
            (root / folder).mkdir(exist_ok=True)
        for i in range(n):
            image, mask, boxes = _draw(rng)
            name = f"{part}{i}.png"
            Image.fromarray(image).save(root / "images" / name)
            Image.fromarray(image).save(root / part / name)
            Image.fromarray(mask).save(root / f"{part}annot" / name)
            content["images"].append({"id": i, "file_name": name, "width": 48, "height": 64})
            for kind, box in boxes:
                x, y, w, h = box
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": i,
                        "category_id": kind,
                        "bbox": box,
                        "area": w * h,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                        "iscrowd": 0,
                    }
                )
        (root / f"{part}.json").write_text(json.dumps(content))
    return root


class Case:
    """A config with its data and a checkpoint of random weights."""

    def __init__(self, folder: Path, text: str, root: Path, name: str) -> None:
        self.folder, self.name, self.root = folder, name, root
        self.path = folder / f"{name}.py"
        self.path.write_text(text.replace("ROOT", str(root)))
        self.checkpoint = folder / f"{name}.pth"
        from mmengine.registry import init_default_scope

        cfg = self.cfg()
        init_default_scope(cfg.default_scope)
        __import__({"mmdet": "mmdet.utils", "mmseg": "mmseg.utils"}[cfg.default_scope], fromlist=["x"])
        _register(cfg.default_scope)
        torch.manual_seed(0)
        model = self.model()
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                torch.nn.init.uniform_(module.weight, 0.8, 1.2)
        torch.save({"state_dict": model.state_dict(), "meta": {}}, self.checkpoint)

    def model(self) -> torch.nn.Module:
        """The network of random weights."""
        from mmengine.registry import MODELS, DefaultScope

        cfg = self.cfg()
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            return MODELS.build(cfg.model).eval()

    def cfg(self, work_dir: Path | None = None, **changes: object) -> Config:
        """The config, with changes, ready for a Runner."""
        cfg = Config.fromfile(self.path)
        cfg.work_dir = str(work_dir or self.folder / "work")
        cfg.merge_from_dict(changes)
        return cfg

    def extended(self, text: str, name: str = "extended") -> Path:
        """A config file that adds `text` to this one."""
        path = self.folder / f"{self.name}_{name}.py"
        path.write_text(f"_base_ = ['./{self.path.name}']\n{text}\n")
        return path


def _register(scope: str) -> None:
    if scope == "mmdet":
        from mmdet.utils import register_all_modules
    else:
        from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=False)


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Case:
    return Case(tmp_path_factory.mktemp("detector"), DETECTOR, drawn, "detector")


@pytest.fixture(scope="session")
def segmentor(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Case:
    return Case(tmp_path_factory.mktemp("segmentor"), SEGMENTOR, drawn, "segmentor")
