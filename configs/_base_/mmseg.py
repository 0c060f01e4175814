# mmengine looks for mmseg:: configs in a package named mmsegmentation, which the maintained fork is not. Named before
# them in _base_, this file lets mmengine find them, under the upstream tools too.
import importlib

importlib.import_module("aihwkit_nabn.openmmlab.forks").find_mmseg_configs()
