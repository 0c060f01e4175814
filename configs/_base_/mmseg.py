# mmengine looks for mmseg:: configs in a package named mmsegmentation, which the maintained fork is not. Named before
# them in _base_, this file lets mmengine find them, under the upstream tools too. Without an import
# statement, which OpenMMLab's own mmengine takes for a config of its newer style.
__import__("aihwkit_nabn.openmmlab.patches", fromlist=["find_mmseg_configs"]).find_mmseg_configs()
