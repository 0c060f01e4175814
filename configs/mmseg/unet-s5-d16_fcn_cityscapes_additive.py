# U-Net on one chip with additive weight noise, calibrated.
_base_ = [
    "../_base_/mmseg.py",
    "mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py",
    "../_base_/analog/gaussian_additive.py",
]
