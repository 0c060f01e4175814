import subprocess
import sys

import aihwkit_nabn as nabn


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    for name in nabn.__all__:
        value = getattr(nabn, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), name


def test_names_to_load_are_the_public_ones() -> None:
    assert sorted([*nabn._HOME, "__version__"]) == sorted(nabn.__all__)
    assert set(nabn.__all__) <= set(dir(nabn))


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, aihwkit_nabn, aihwkit_nabn.cli; sys.exit('torch' in sys.modules or 'aihwkit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_core_works_without_openmmlab() -> None:
    code = (
        "import sys\n"
        "for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg'): sys.modules[name] = None\n"
        "import aihwkit_nabn as nabn\n"
        "[getattr(nabn, name) for name in nabn.__all__]\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
