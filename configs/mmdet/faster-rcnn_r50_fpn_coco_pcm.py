# Faster R-CNN on one phase-change memory chip after a day, calibrated.
_base_ = ["mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", "../_base_/analog/pcm.py"]
