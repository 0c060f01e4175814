# PSPNet on one chip with multiplicative weight noise, calibrated.
_base_ = [
    "../_base_/mmseg.py",
    "mmseg::pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py",
    "../_base_/analog/gaussian_multiplicative.py",
]
