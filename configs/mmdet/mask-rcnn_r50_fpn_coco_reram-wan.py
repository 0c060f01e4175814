# Mask R-CNN (boxes and masks) on one ReRAM chip after a day, calibrated.
_base_ = ["mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", "../_base_/analog/reram_wan.py"]
