# Road scenes: the trained FCN of camvid_fcn_r18.py, fine-tuned for analog chips with aihwkit's hardware-aware training,
# at additive weight noise of 0.04 of each layer's maximum.
#
#   NABN_DATA=FOLDER python MMSEG/.mim/tools/train.py configs/real/camvid_fcn_r18_hwa.py \
#       --cfg-options load_from=work_dirs/camvid_fcn_r18/epoch_40.pth
#
# The checkpoint it writes is one of camvid_fcn_r18.py: test it with that config. Other noise:
#   --cfg-options custom_hooks.0.rpu_config.sigma=0.02
_base_ = ["./camvid_fcn_r18.py"]
load_from = "work_dirs/camvid_fcn_r18/epoch_40.pth"
custom_hooks = [
    dict(
        type="HardwareAwareTrainingHook",
        rpu_config=dict(type="GaussianWeightNoisePreset", sigma=0.04),
        clip_sigma=2.5,
    )
]
EPOCHS = 6
train_cfg = dict(max_epochs=EPOCHS, val_interval=EPOCHS)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=1e-6, by_epoch=True, begin=0, end=EPOCHS, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=EPOCHS))
