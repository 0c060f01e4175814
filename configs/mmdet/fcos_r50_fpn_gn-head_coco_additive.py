# FCOS, whose head has group instead of batch normalization, on one chip with additive weight noise, calibrated.
_base_ = ["mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", "../_base_/analog/gaussian_additive.py"]
