# Blood cells: the trained RetinaNet of bccd_retinanet_r18.py, fine-tuned for analog chips with aihwkit's hardware-aware
# training, at additive weight noise of 0.06 of each layer's maximum.
#
#   NABN_DATA=FOLDER python MMDET/.mim/tools/train.py configs/real/bccd_retinanet_r18_hwa.py \
#       --cfg-options load_from=work_dirs/bccd_retinanet_r18/epoch_16.pth
#
# The checkpoint it writes is one of bccd_retinanet_r18.py: test it with that config. Other noise:
#   --cfg-options custom_hooks.0.rpu_config.sigma=0.02
_base_ = ["./bccd_retinanet_r18.py"]
load_from = "work_dirs/bccd_retinanet_r18/epoch_16.pth"
custom_hooks = [
    dict(
        type="HardwareAwareTrainingHook",
        rpu_config=dict(type="GaussianWeightNoisePreset", sigma=0.06),
        clip_sigma=2.5,
    )
]
EPOCHS = 6
train_cfg = dict(max_epochs=EPOCHS, val_interval=EPOCHS)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = [
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=EPOCHS, eta_min=1e-6, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=EPOCHS))
