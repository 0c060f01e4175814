"""Compiles the C sources when the package is built or installed; hatch runs this.

By hand, e.g. after a change of one: ``python tools/compile_native.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("aihwkit_nabn/native")
LIBRARY = FOLDER / "libnabn.so"
# No -ffast-math: NaN and infinity must go through as with torch. No fused multiply-add: the same on every processor.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


def compile_native(root: Path) -> str:
    """Compile the library beside its sources, in one step, and return why not; empty if it worked."""
    sources = sorted(map(str, (root / FOLDER).glob("*.c")))
    target = root / LIBRARY
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if sys.platform == "win32" or compiler is None:
        target.unlink(missing_ok=True)
        return "no C compiler"
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    command = [*compiler.split(), *FLAGS, "-o", str(temporary), *sources, "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            target.unlink(missing_ok=True)
            return f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
        os.replace(temporary, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        target.unlink(missing_ok=True)
        return f"{compiler}: {error}"
    finally:
        temporary.unlink(missing_ok=True)
    return ""


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    pass
else:

    class CompileNative(BuildHookInterface[Any]):
        """Hatch's build hook."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile, and put the library into the wheel, which then is one of this platform."""
            fault = compile_native(Path(self.root))
            if fault:
                self.app.display_warning(f"nothing is compiled; converters and calibration are slower for it: {fault}")
                return
            build_data["artifacts"].append(LIBRARY.as_posix())
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


if __name__ == "__main__":
    raise SystemExit(compile_native(ROOT) or 0)
