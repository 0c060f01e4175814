# FCN on one phase-change memory chip after a day, calibrated.
_base_ = ["../_base_/mmseg.py", "mmseg::fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py", "../_base_/analog/pcm.py"]
