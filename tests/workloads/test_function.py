"""Models and workloads that a function of the user's returns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.commands._workload import model_arguments
from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, Workload, load_workload
from aihwkit_nabn.workloads._image_input import ImageInput
from tests.tensors import equal

Folder = Callable[..., Path]

MODEL = """
from torch import nn
from blocks import block

class Net(nn.Sequential):
    def __init__(self, num_classes, width, channels):
        super().__init__(
            block(channels, width), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes)
        )

def build(num_classes=3, width=4, channels=3):
    return Net(num_classes, width, channels)

def fixed():
    return Net(3, 4, 3)

def needs(depth, num_classes):
    return Net(num_classes, depth, 3)

def dictionary():
    return {"model": 1}

def a_class():
    return Net

def pairs():
    class Pairs(Net):
        def forward(self, x):
            return super().forward(x), None
    return Pairs(3, 4, 3)

def breaks():
    class Breaks(Net):
        def forward(self, x):
            return super().forward(x) + self.missing
    return Breaks(3, 4, 3)

def configured():
    net = fixed()
    net.pretrained_cfg = {"input_size": (3, 24, 24), "crop_pct": 0.75, "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 2.0)}
    return net

def loads(checkpoint, num_classes):
    net = Net(num_classes, 4, 3)
    net.loaded = checkpoint
    return net

made = fixed()
number = 3

def workload(data, settings, scale=1.0):
    import torch
    from aihwkit_nabn.workloads import Workload
    images = torch.load(f"{data}/images.pt")[: settings.test_images]
    return Workload(
        model=fixed(),
        eval_fn=lambda model: {"score": scale * float(model(images).mean().detach())},
        calibration=lambda request: images[: request.n].split(4),
    )

def without():
    from aihwkit_nabn.workloads import Workload
    return Workload(model=fixed(), eval_fn=lambda model: {"score": 1.0}, calibration=lambda request: [])
"""
BLOCKS = """
from torch import nn

def block(channels, width):
    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "blocks.py").write_text(BLOCKS)
    (folder / "my_net.py").write_text(MODEL)
    return folder / "my_net.py"


def _load(file: Path, name: str, data: Path | None, **given: Any) -> Workload:
    settings = LoadSettings(batch_size=5, loader_workers=0) if "settings" not in given else given.pop("settings")
    options = {} if data is None else {"data": str(data)}
    return load_workload(f"{file}:{name}", settings, **options, **{"image_size": 16, **given})


def test_a_model_with_the_images_of_a_folder(file: Path, shapes_folder: Folder) -> None:
    root = shapes_folder(classes=("circle", "square"))
    workload = _load(file, "build", root, checkpoint="random", model_args={"width": 6})
    assert workload.model[0][0].weight.shape == (6, 3, 3, 3) and workload.model[-1].out_features == 2
    assert not workload.model.training and set(workload.eval_fn(workload.model)) == {"accuracy"}
    (batch, *_) = workload.calibration(CalibrationRequest(n=4))
    assert batch.shape == (4, 3, 16, 16)
    again = _load(file, "build", root, checkpoint="random", model_args={"width": 6})
    assert equal(workload.model.state_dict(), again.model.state_dict()), "random weights come from the seed"
    assert workload.description[-1].endswith("image_size as given, the others the usual ones for ImageNet")
    assert workload.facts["setup"]["model_args"] == {"width": "6"}


def test_a_class_and_a_model_will_do_too(file: Path, shapes_folder: Folder) -> None:
    root = shapes_folder()
    assert _load(file, "Net", root, model_args={"width": 5, "channels": 3}).model[-1].out_features == 3
    assert "weights as the function returns them" in _load(file, "made", root).description[0]
    with pytest.raises(NabnError, match="my_net.py:made is a Net, no function; it takes no model_args"):
        _load(file, "made", root, model_args={"width": 5})


@pytest.mark.parametrize("form", ["plain", "nested", "averaged"])
def test_weights_are_read_as_torchvisions_are(form: str, file: Path, shapes_folder: Folder, tmp_path: Path) -> None:
    root = shapes_folder()
    one, two = (_load(file, "build", root, checkpoint="random", settings=LoadSettings(seed=s)).model for s in (1, 2))
    wrapped = {f"module.{name}": tensor for name, tensor in one.state_dict().items()}
    content = {
        "plain": one.state_dict(),
        "nested": {"epoch": 3, "model": wrapped},
        "averaged": {"model": two.state_dict(), "model_ema": {**wrapped, "n_averaged": torch.tensor(3)}},
    }
    torch.save(content[form], tmp_path / "w.pth")
    options = {"take": "ema"} if form == "averaged" else {}
    found = _load(file, "build", root, checkpoint=str(tmp_path / "w.pth"), **options)
    assert equal(found.model.state_dict(), one.state_dict())
    assert any("model_ema.module (averaged) was taken" in line for line in found.description) == (form == "averaged")


def test_a_function_that_takes_the_weights_loads_them_itself(file: Path, shapes_folder: Folder) -> None:
    assert _load(file, "loads", shapes_folder(), checkpoint="anything").model.loaded == "anything"


def test_who_says_how_images_are_read(file: Path, shapes_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user, then the model, then torchvision for its own weights, then ImageNet."""
    root = shapes_folder()

    def images(workload: Workload) -> torch.Tensor:
        return torch.cat(list(workload.calibration(CalibrationRequest(n=3))))

    carried = load_workload(f"{file}:configured", LoadSettings(loader_workers=0), data=str(root))
    assert images(carried).shape == (3, 3, 24, 24)
    assert "shorter edge to 32 (bicubic), centre of 24 x 24, mean 0.1,0.2,0.3" in carried.description[-1]
    assert carried.description[-1].endswith("the model's pretrained_cfg")
    given = load_workload(f"{file}:configured", LoadSettings(loader_workers=0), data=str(root), mean="0.2,0.3,0.4")
    assert given.description[-1].endswith("mean as given, the others the model's pretrained_cfg")
    expected = images(carried) - torch.tensor([0.1, 0.1, 0.1 / 2]).view(3, 1, 1)
    assert torch.allclose(images(given), expected, atol=1e-6)
    whole = _load(file, "build", root, crop_pct=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert "shorter edge to 16" in whole.description[-1] and float(images(whole).min()) >= 0.0
    from aihwkit_nabn.workloads import function

    monkeypatch.setattr(function, "image_input_of", lambda path: ImageInput(size=20, resize=20, origin="torchvision's"))
    torch.save(carried.model.state_dict(), file.with_name("w.pth"))
    known = load_workload(f"{file}:fixed", data=str(root), checkpoint=str(file.with_name("w.pth")))
    assert "centre of 20 x 20" in known.description[-1] and known.description[-1].endswith("torchvision's")


def test_networks_for_images_in_grey(file: Path, shapes_folder: Folder) -> None:
    options = {"model_args": {"channels": 1}, "mean": 0.5, "std": "0.25", "checkpoint": "random"}
    workload = _load(file, "build", shapes_folder(), **options)
    for source in ("representative", "other_data"):
        (batch, *_) = workload.calibration(CalibrationRequest(n=2, source=source))
        assert batch.shape == (2, 1, 16, 16)
    with pytest.raises(NabnError, match="mean and std must have as many channels"):
        _load(file, "build", file.parents[1] / "shapes", mean=0.5)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("dictionary", {}, r"my_net.py:dictionary must return a torch.nn.Module or a Workload, got dict: {'model': 1}"),
        ("a_class", {}, "must return a torch.nn.Module or a Workload, got the class Net"),
        ("number", {}, "must be a function that returns a torch.nn.Module, got 3"),
        ("biuld", {}, "has no 'biuld', did you mean 'build'"),
        ("needs", {}, r"my_net.py:needs needs depth: give --model-arg depth=VALUE"),
        ("needs", {"data": None}, r"needs depth, num_classes: give --model-arg depth=VALUE, --model-arg num_classes"),
        ("loads", {}, "loads needs checkpoint: give WEIGHTS"),
        ("build", {"model_args": {"widht": 3}}, "takes no widht, did you mean 'width'.; it takes num_classes, width"),
        ("build", {"model_args": {"width": "x"}}, r"my_net.py:build failed: TypeError: .*\(.*blocks.py, line 5\)"),
        ("build", {"model_args": "x"}, "model_args of .* must be a mapping from names of arguments to values, got 'x'"),
        ("build", {"data": None}, "which needs data: the folder with train/CLASS/images"),
        ("build", {"data": "nowhere"}, "data folder 'nowhere' does not exist"),
        ("build", {"checkpoint": "no.pth"}, "weights 'no.pth' is not a file"),
        ("build", {"model_args": {"num_classes": 7}}, r"must give scores \(1, 3\) for one image, .* a tensor \(1, 7\)"),
        ("pairs", {}, r"must give scores \(1, 3\) for one image, as .*shapes has 3 class folders, got a tuple"),
        ("breaks", {}, r"cannot take images of 16 x 16 pixels in 3 channels: 'Breaks' .*\(.*my_net.py, line 35\)"),
        ("build", {"model_args": {"channels": 1}}, "cannot take images of 16 x 16 pixels in 3 channels"),
        ("build", {"mean": "1,2"}, "mean of .* must be three numbers, as 0.5,0.5,0.5, or one for images in grey, got"),
        ("build", {"std": (1.0, 0.0, 1.0)}, "std of .* must be a finite number > 0"),
        ("build", {"crop_pct": 1.5}, "crop_pct of .* must be a finite number > 0 and <= 1"),
        ("build", {"interpolation": "cubic"}, "interpolation of .* did you mean 'bicubic'"),
        ("build", {"device": "warp"}, "device must be one that torch can use"),
        ("build", {"per_class": True}, "takes no per_class"),
        (
            "without",
            {"image_size": None},
            "without returns a Workload and takes no data: give the function a parameter",
        ),
    ],
)
def test_one_clear_error(name: str, given: dict[str, Any], message: str, file: Path, shapes_folder: Folder) -> None:
    options = {"data": str(shapes_folder(count=1)), "image_size": 16, **given}
    options = {key: value for key, value in options.items() if value is not None}
    with pytest.raises(NabnError, match=message):
        load_workload(f"{file}:{name}", LoadSettings(loader_workers=0), **options)


def test_weights_of_another_network_or_another_number_of_classes(
    file: Path, shapes_folder: Folder, tmp_path: Path
) -> None:
    root, path = shapes_folder(), tmp_path / "w.pth"
    other = _load(file, "build", root, model_args={"width": 7}).model
    for state, message in (
        (other.state_dict(), "does not fit the model: of another shape 0.0.weight"),
        (torchvision.models.squeezenet1_1().state_dict(), "of another network: it holds 52 tensors"),
        (
            nn.Sequential(*list(other)[:3], nn.Linear(28, 5)).state_dict(),
            "tell 5 classes apart, but .*shapes has 3 class",
        ),
    ):
        torch.save(state, path)
        given = {"model_args": {"width": 7}} if "5" in message else {}
        with pytest.raises(NabnError, match=message):
            _load(file, "build", root, checkpoint=str(path), **given)


def test_a_workload_of_the_users_own(file: Path, tmp_path: Path) -> None:
    torch.save(torch.randn(9, 3, 16, 16), tmp_path / "images.pt")
    settings = LoadSettings(test_images=5)
    one, two = (
        load_workload(f"{file}:workload", settings, data=str(tmp_path), model_args={"scale": s}) for s in (1.0, 2.0)
    )
    assert two.eval_fn(two.model)["score"] == pytest.approx(2 * one.eval_fn(one.model)["score"], rel=1e-5)
    assert not one.model.training and len(next(iter(one.calibration(CalibrationRequest())))) == 4
    assert one.description == (f"{file}:workload: a workload of your own",)
    assert re.fullmatch(rf"{file}:workload [0-9a-f]{{16}}", one.facts["setup"]["code"])
    with pytest.raises(NabnError, match="takes no test_images, batch_size or loader_workers: give the function a para"):
        load_workload(f"{file}:without", settings)


def test_modules_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes_folder: Folder) -> None:
    root = shapes_folder(count=1)
    (tmp_path / "lonely_net.py").write_text(MODEL.replace("from blocks import block", BLOCKS))
    monkeypatch.chdir(tmp_path)
    assert load_workload("lonely_net:build", LoadSettings(loader_workers=0), data=str(root), image_size=16)
    model = load_workload(
        "torchvision.models:squeezenet1_1",
        LoadSettings(loader_workers=0),
        data=str(root),
        image_size=32,
        model_args={"num_classes": 3, "weights": None},
    ).model
    assert isinstance(model, torchvision.models.SqueezeNet)
    with pytest.raises(NabnError, match="no module 'torchvision.modles' .*did you mean 'models'"):
        load_workload("torchvision.modles:resnet18")
    with pytest.raises(UnknownNameError, match="FILE.py:FUNCTION"):
        load_workload("lonely_nte:build")


def test_arguments_on_the_command_line() -> None:
    items = ["a=3", "b=text", "c=[1, 2]", "d=None", "e=1e-3", "f=x=y", "g='4'", "h="]
    expected = {"a": 3, "b": "text", "c": [1, 2], "d": None, "e": 1e-3, "f": "x=y", "g": "4", "h": ""}
    assert model_arguments(items) == expected and model_arguments(None) is None
    for bad, message in (("a", "must be KEY=VALUE, got 'a'"), ("a-b=3", "KEY=VALUE"), ("=3", "KEY=VALUE")):
        with pytest.raises(NabnError, match=message):
            model_arguments([bad])
    with pytest.raises(NabnError, match="gives a twice"):
        model_arguments(["a=1", "a=2"])


def _arguments(command: str, file: Path, data: Path, out: Path, *more: str) -> list[str]:
    options = ["--data", str(data), "--image-size", "16", "--crop-pct", "1", "--mean", "0.5,0.5,0.5", "--out", str(out)]
    options += ["--noise", "gaussian:sigma=0.1", "--chips", "2", "--methods", "none,population", "--loader-workers"]
    return [command, f"{file}:build", "random", *options, "0", "--calibration-images", "8", *more]


def test_on_the_command_line(
    file: Path, shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = shapes_folder(), tmp_path / "out"
    arguments = _arguments("test", file, root, out, "--model-arg", "width=5")
    assert run(cli.app, arguments) == 0
    text = capsys.readouterr().out
    assert "my_net.py:build (random weights), 3 classes" in text
    assert "mean 0.5,0.5,0.5" in text and "image_size, crop_pct, mean as given, the others the usual ones" in text
    assert len(json.loads((out / "results.json").read_text())["records"]) == 4
    assert run(cli.app, [*arguments, "--resume"]) == 0
    for other, message in (
        (["--model-arg", "width=5", "--mean", "0.4"], "mean and std must have as many channels"),
        (["--model-arg", "width=5", "--std", "0.4,0.4,0.4"], "images = "),
        (["--model-arg", "width=6"], "model = "),
    ):
        assert run(cli.app, [*_arguments("test", file, root, out, *other), "--resume"]) == 2
        assert message in capsys.readouterr().err
    file.with_name("blocks.py").write_text(BLOCKS + "# changed\n")
    command = [
        "import sys; from aihwkit_nabn.cli import main; sys.argv[1:] = %r; sys.exit(main())" % [*arguments, "--resume"]
    ]
    done = subprocess.run([sys.executable, "-c", *command], capture_output=True, text=True)
    assert done.returncode == 2 and "was made with code = " in done.stderr, done.stderr


def test_a_file_without_its_function(file: Path) -> None:
    pytest.importorskip("mmengine")
    file.with_name("alone.py").write_text("def build():\n    return None\n")
    with pytest.raises(
        NabnError, match=r"alone.py defines no model, .* for a function in it write .*alone.py:FUNCTION"
    ):
        load_workload(str(file.with_name("alone.py")), checkpoint="random")


def test_inspected(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli.app, ["inspect", f"{file}:build", "--model-arg", "width=5", "--layers"]) == 0
    assert "100.0% of 195 matrix weights" in capsys.readouterr().out
    assert run(cli.app, ["inspect", f"{file}:needs", "--model-arg", "depth=5"]) == 2
    assert "give --model-arg num_classes=VALUE (with --data" in capsys.readouterr().err


def test_results_have_a_folder_of_the_functions_name() -> None:
    from aihwkit_nabn.commands._evaluation import folder_name
    from aihwkit_nabn.studies.grid.models import read_model

    assert folder_name("../there/net.py:build") == "net_build"
    assert read_model("models", "there/net.py:build").name == "net_build"


@pytest.mark.slow
def test_several_processes_load_the_same_file(
    file: Path, shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, records = shapes_folder(), []
    for number in ("1", "2"):
        out = tmp_path / number
        assert run(cli.app, _arguments("sensitivity", file, root, out, "--jobs", number)) == 0, capsys.readouterr().err
        records.append(json.loads((out / "sensitivity.json").read_text()))
    strip = [re.sub(r'"(seconds|time|date|command)[^,}]*', "", json.dumps(each["records"])) for each in records]
    assert strip[0] == strip[1]


@pytest.mark.slow
def test_a_sweep_over_two_functions(
    file: Path, shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    common = {"data": str(shapes_folder()), "checkpoint": "random", "image_size": 16}
    content = {
        "version": 1,
        "name": "own",
        "chips": 1,
        "noise": "gaussian:sigma=0.1",
        "methods": ["population"],
        "samples": 8,
        "models": [
            {"model": f"{file}:build", "model_args": {"width": 5}, "name": "five", **common},
            {"model": f"{file}:fixed", "mean": [0.5, 0.5, 0.5], **common},
        ],
    }
    spec = tmp_path / "own.yaml"
    spec.write_text(yaml.safe_dump(content))
    arguments = ["sweep", str(spec), "--jobs", "2", "--out", str(tmp_path / "out")]
    assert run(cli.app, arguments) == 0, capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"five", "my_net_fixed"}
    content["models"][1]["std"] = [0.5, 0.5, 0.5]
    spec.write_text(yaml.safe_dump(content))
    assert run(cli.app, arguments) == 2
