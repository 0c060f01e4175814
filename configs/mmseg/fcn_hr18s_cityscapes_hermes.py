# HRNet-W18 small on one HERMES chip after a day, calibrated.
_base_ = ["../_base_/mmseg.py", "mmseg::hrnet/fcn_hr18s_4xb2-80k_cityscapes-512x1024.py", "../_base_/analog/hermes.py"]
