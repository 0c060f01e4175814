"""Small programs that try one part of the installation each, in another process than ours.

A compiled extension that does not fit can end the process it is loaded into. The probes share one process, because each
would spend seconds on importing torch; where one ends it, the rest go on in a new one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

TIMEOUT_SECONDS = 180

# Each ends with setting `detail`; an exception is why it failed.
PROBES = {
    "torch": "import torch; torch.ones(2).sum(); detail = torch.__version__",
    "torchvision": "import torchvision; torchvision.ops.nms; detail = torchvision.__version__",
    "numpy": "import numpy, torch; torch.ones(2).numpy(); detail = numpy.__version__",
    "gpu": """
import torch
if torch.cuda.is_available():
    torch.ones(2, device="cuda").sum().item()
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    detail = ", ".join(names)
else:
    detail = "built for CUDA" if torch.version.cuda else "built without CUDA"
""",
    "torch_tile": """
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import TorchInferenceRPUConfig
layer = AnalogLinear(4, 3, rpu_config=TorchInferenceRPUConfig()).eval()
layer.program_analog_weights()
layer.drift_analog_weights(1.0)
assert layer(torch.ones(2, 4)).shape == (2, 3)
detail = "constructs, programs, drifts and computes"
""",
    "compiled_tile": """
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import InferenceRPUConfig
layer = AnalogLinear(4, 3, rpu_config=InferenceRPUConfig()).eval()
layer.program_analog_weights()
layer.drift_analog_weights(1.0)
assert layer(torch.ones(2, 4)).shape == (2, 3)
from aihwkit.simulator.rpu_base import cuda
detail = "constructs and computes" + ("" if cuda.is_compiled() else "; CPU only")
""",
    "converters": """
from aihwkit_nabn import native
reason = native.why_not()
if reason:
    raise RuntimeError(reason)
detail = "compiled; " + ("on the threads of torch's pool" if native.is_parallel() else "on one thread")
""",
    "package": """
import torch, aihwkit_nabn as nabn
model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
chip = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset(sigma=0.1))
nabn.program_chip(chip, seed=0)
nabn.calibrate(chip, [torch.randn(8, 1, 8, 8)], method="paired", reference=model)
assert chip(torch.randn(2, 1, 8, 8)).isfinite().all()
detail = nabn.__version__ + ": converts, programs and calibrates"
""",
    "mmengine": "import mmengine; detail = mmengine.__version__",
    "mmcv": "import mmcv; detail = mmcv.__version__",
    "mmcv_ops": """
import torch, mmcv._ext
from mmcv.ops import nms
boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0], [20.0, 20.0, 30.0, 30.0]])
kept, _ = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
assert len(kept) == 2
ours = getattr(mmcv._ext, "__all__", ())
detail = "aihwkit_nabn's, on torchvision; mmcv is not compiled" if ours else "mmcv's own, compiled"
""",
    "mmdet": "import mmdet, mmdet.models; detail = mmdet.__version__",
    "mmseg": "import mmseg, mmseg.models; detail = mmseg.__version__",
    "timm": """
import timm, torch
assert timm.create_model("resnet18", num_classes=3).eval()(torch.ones(1, 3, 32, 32)).shape == (1, 3)
detail = timm.__version__
""",
    "transformers": """
import torch, transformers
sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4)
model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, num_labels=3)).eval()
assert model(torch.ones(1, 3, 8, 8)).logits.shape == (1, 3)
detail = transformers.__version__
""",
    "ray": "import ray; detail = ray.__version__",
}


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """How a probe ended.

    Attributes:
        works: Whether it ran to its end.
        detail: What it found, or why it failed, on one line.
    """

    works: bool
    detail: str


_MARK = "nabn-probe "

# Reads {name: program} and reports on lines of its own, as imports print what they like.
_DRIVER = f"""
import json, sys
def say(**entry):
    print("\\n{_MARK}" + json.dumps(entry), flush=True)
for name, program in json.load(sys.stdin).items():
    say(begin=name)
    scope = {{}}
    try:
        exec(program, scope)
        say(end=name, works=True, detail=str(scope["detail"]))
    except BaseException as error:
        lines = str(error).strip().splitlines() or [""]
        say(end=name, works=False, detail=type(error).__name__ + ": " + lines[0])
"""


def run_probes(names: Iterable[str], probes: dict[str, str] = PROBES) -> dict[str, ProbeResult]:
    """Run probes and return how each ended; raises nothing."""
    waiting = list(names)
    results: dict[str, ProbeResult] = {}
    while waiting:
        output, ending = _run_driver({name: probes[name] for name in waiting})
        begun = None
        for line in output.splitlines():
            if not line.startswith(_MARK):
                continue
            entry = json.loads(line.removeprefix(_MARK))
            begun = entry.get("begin")
            if "end" in entry:
                results[entry["end"]] = ProbeResult(works=entry["works"], detail=entry["detail"][:200])
        if begun is not None:
            results[begun] = ProbeResult(works=False, detail=ending)
        left = [name for name in waiting if name not in results]
        if len(left) == len(waiting):  # the interpreter itself did not start, and will not for the others
            return results | {name: ProbeResult(works=False, detail=ending) for name in left}
        waiting = left
    return results


def _run_driver(programs: dict[str, str]) -> tuple[str, str]:
    """Return what the process printed and how it ended."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _DRIVER],
            input=json.dumps(programs),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or ""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return text, f"no answer within {TIMEOUT_SECONDS} s"
    except OSError as error:
        return "", f"cannot start {sys.executable}: {error.strerror or error}"
    if done.returncode < 0:
        return done.stdout, f"it ended the process with signal {-done.returncode}"
    return done.stdout, f"it ended the process with exit code {done.returncode}"
