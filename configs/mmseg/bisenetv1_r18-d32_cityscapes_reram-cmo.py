# BiSeNetV1 on one conductive-metal-oxide ReRAM chip after an hour, calibrated.
_base_ = [
    "../_base_/mmseg.py",
    "mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py",
    "../_base_/analog/reram_cmo.py",
]
