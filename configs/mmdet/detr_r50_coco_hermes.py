# DETR, attention included, on one HERMES chip after a day, calibrated.
_base_ = ["mmdet::detr/detr_r50_8xb2-150e_coco.py", "../_base_/analog/hermes.py"]
