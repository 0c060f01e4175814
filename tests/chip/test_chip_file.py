"""Chip files: the same chip comes back bit for bit, and nothing else is taken for one."""

from __future__ import annotations

import copy
import json
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.chip import container, tile_state
from aihwkit_nabn.chip.container import read_container, write_container
from aihwkit_nabn.errors import ChipFileError, NabnError
from aihwkit_nabn.simulator import parse_preset
from tests.built_in import NOISE_NAMES
from tests.chips import chip_of
from tests.tensors import equal, outputs

SETTINGS = [*NOISE_NAMES, "crossbar", "pcm+stuck:p_off=0.01", "variational+pcm"]
SETTINGS += ["pcm+stuck:replicate_rows=true", "crossbar:replicate_rows=3,output_range=true"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        shared,
        nn.ReLU(),
        shared,
        nn.Conv2d(8, 4, 3, groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
    ).eval()


def inputs() -> list[Tensor]:
    return [torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def same(a: nn.Module, b: nn.Module) -> bool:
    return equal(outputs(a, inputs()), outputs(b, inputs()))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_loaded_chip_is_the_same_and_stays_so(setting: str, tmp_path: Path) -> None:
    model = network()
    chip = chip_of(model, setting, inputs=inputs())
    nabn.calibrate(chip, inputs(), method="paired", reference=model, progress=False)
    with torch.no_grad():
        chip(inputs()[0])  # the read noise and varying noise have moved on
    path = nabn.save_chip(chip, tmp_path / "new" / "chip.safetensors")
    other = network()
    nn.init.normal_(other[0].weight)  # only the architecture counts
    before = copy.deepcopy(other.state_dict())
    loaded = nabn.load_chip(other, path)
    assert equal(other.state_dict(), before)
    assert not loaded.training and loaded[3] is loaded[5]
    assert same(chip, loaded)
    for each in (chip, loaded):
        nabn.drift_chip(each, "3h")
    assert same(chip, loaded)
    for each in (chip, loaded):
        nabn.calibrate(each, inputs(), method="population", progress=False)
    assert same(chip, loaded)
    again = nabn.load_chip(network(), nabn.save_chip(loaded, path))
    assert same(loaded, again)
    for each in (chip, again):
        nabn.program_chip(each, 5, "1h")
    assert same(chip, again)


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_weights_are_stored_twice(setting: str, tmp_path: Path) -> None:
    """Whole or in part: of a tile's matrices no two are the same, and none is missing."""
    chip = chip_of(network(), setting)
    tensors = load_file(nabn.save_chip(chip, tmp_path / "chip"))
    tiles = {name.rpartition("/")[0] for name in tensors if name.startswith("tile/")}
    held = 0
    for tile in tiles:
        kinds = ("weight", "programmed_weights", "reference_combined_weights")
        found = [tensors[f"{tile}/{kind}"] for kind in kinds if f"{tile}/{kind}" in tensors]
        assert len(found) >= 2 and not torch.equal(found[0], found[1])
        held += len(found) == 3
    drifts = any(word in setting for word in ("pcm", "reram_wan", "reram_cmo", "hermes", "crossbar", "measured"))
    assert held == (len(tiles) if drifts else 0)


def test_a_file_with_the_weights_in_it_gives_the_same_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As version 1 wrote them."""
    model = network()
    chip = chip_of(model, "gaussian")
    new = nabn.save_chip(chip, tmp_path / "new")
    monkeypatch.setattr(container, "VERSION", 1)
    monkeypatch.setattr(tile_state, "_same_bits", lambda *tensors: False)
    old = nabn.save_chip(chip, tmp_path / "old")
    monkeypatch.undo()
    n_weights = sum(model[number].weight.numel() for number in (0, 3, 6, 8))
    assert 4 * n_weights <= old.stat().st_size - new.stat().st_size < 4.5 * n_weights + 1000
    one, other = nabn.load_chip(model, new), nabn.load_chip(model, old)
    assert same(chip, one) and same(chip, other)
    weights = [layer.analog_module.array[0][0].tile.weight for layer in (one[0], other[0])]
    assert torch.equal(*weights)
    with torch.no_grad():
        weights[0].zero_()  # its own memory, not that of what was programmed
    assert one[0].analog_module.array[0][0].programmed_weights.any()


def test_zeros_of_another_sign_are_kept() -> None:
    plus, minus = torch.zeros(2, 3), -torch.zeros(2, 3)
    assert tile_state._same_bits(plus, plus.clone()) and not tile_state._same_bits(plus, minus)
    assert not tile_state._same_bits(plus, plus.double())


def test_parts_kept_digital_stay_so(tmp_path: Path) -> None:
    model = network()
    chip = chip_of(model, exclude=("0", "8"))
    loaded = nabn.load_chip(model, nabn.save_chip(chip, tmp_path / "chip"))
    assert type(loaded[0]) is nn.Conv2d and type(loaded[8]) is nn.Linear
    assert same(chip, loaded)


def test_layers_with_settings_of_their_own(tmp_path: Path) -> None:
    model = network()

    def specific(name: str, module: nn.Module, config: Any) -> Any:
        return parse_preset("gaussian:sigma=0.1") if name == "0" else config

    chip: Any = nabn.convert_to_noise_aware(model, parse_preset("pcm"), specific_rpu_config_fun=specific)
    nabn.program_chip(chip, 1)
    loaded: Any = nabn.load_chip(model, nabn.save_chip(chip, tmp_path / "chip"))
    assert same(chip, loaded)
    configs = [next(layer.analog_tiles()).rpu_config for layer in (loaded[0], loaded[3])]
    assert [config.noise_name for config in configs] == ["gaussian", "pcm"]


def test_double_precision_with_drift_compensation(tmp_path: Path) -> None:
    model, x = network().double(), inputs()[0].double()
    chip = chip_of(model, "pcm")
    path = nabn.save_chip(chip, tmp_path / "chip")
    loaded = nabn.load_chip(model, path)
    for each in (chip, loaded):
        nabn.drift_chip(each, "1d")
    assert equal(*(outputs(each, [x]) for each in (chip, loaded)))
    assert equal(*(outputs(nabn.program_chip(each, 5), [x]) for each in (chip, loaded)))


def test_training_after_loading_is_noticed(tmp_path: Path) -> None:
    model = network()
    loaded: Any = nabn.load_chip(model, nabn.save_chip(chip_of(model), tmp_path / "chip"))
    with torch.no_grad():
        next(loaded[0].analog_tiles()).tile.weight.add_(0.1)
    with pytest.raises(nabn.NabnError, match="was trained after it was programmed"):
        nabn.drift_chip(loaded, "1d")


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "chip"
    with pytest.raises(NabnError, match="holds no chip yet"):
        nabn.save_chip(nabn.convert_to_noise_aware(model, parse_preset("pcm")), path)
    chip = chip_of(model)
    nabn.calibrate(chip, inputs(), method="online", progress=False)
    with pytest.raises(NabnError, match="freeze_calibration"):
        nabn.save_chip(chip, path)
    nabn.freeze_calibration(chip)
    nabn.fold_calibration(chip)
    with pytest.raises(NabnError, match="undo the fold"):
        nabn.save_chip(chip, path)
    with pytest.raises(NabnError, match="is a folder"):
        nabn.save_chip(chip_of(model), tmp_path)
    with pytest.raises(NabnError, match="path must be a file's path, got 3"):
        nabn.save_chip(chip_of(model), 3)  # type: ignore[arg-type]
    assert not path.exists()


def altered(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Path:
    """Write a file with other content, its checksum right."""
    content, tensors = read_container(path)
    change(content, tensors)
    new = path.with_name("altered")
    write_container(new, content, tensors)
    return new


def test_other_files_and_networks_are_refused(tmp_path: Path) -> None:
    model = network()
    path = nabn.save_chip(chip_of(model), tmp_path / "chip")
    for other, message in (
        (nn.Sequential(*network(), nn.Linear(5, 5)), "the file has no layer '9'"),
        (nn.Sequential(*network()[:8], nn.Linear(64, 6)), "'8' is NoiseAwareLinear .5, 64. in the file"),
        (nn.Sequential(*network()[:1], nn.Identity(), *network()[2:]), "'1.bias' differs"),
        (chip_of(model), "got an analog one"),
    ):
        with pytest.raises(NabnError, match=message):
            nabn.load_chip(other, path)
    with pytest.raises(ChipFileError, match="no chip file"):
        nabn.load_chip(model, tmp_path / "nothing")
    foreign = tmp_path / "foreign"
    save_file({"a": torch.zeros(2)}, foreign, {"format": "pt"})
    with pytest.raises(ChipFileError, match="is no chip file of this package"):
        nabn.load_chip(model, foreign)


def test_altered_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    path = nabn.save_chip(chip_of(model), tmp_path / "chip")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    tensors["tile/0/analog_module.array.0.0/weight"][0, 0] += 1.0
    save_file(tensors, tmp_path / "changed", header)
    with pytest.raises(ChipFileError, match="checksum does not fit"):
        nabn.load_chip(model, tmp_path / "changed")
    unknown = altered(
        path, lambda content, _: content["configs"][0]["fields"]["noise_model"].update(object="os.system")
    )
    with pytest.raises(NabnError, match="'os.system', which is not known here"):
        nabn.load_chip(model, unknown)
    monkeypatch.setattr(container, "VERSION", 3)
    nabn.save_chip(chip_of(model), tmp_path / "newer")
    monkeypatch.undo()
    with pytest.raises(ChipFileError, match="has version '3' of the format; this release reads versions 1 and 2"):
        nabn.load_chip(model, tmp_path / "newer")


def test_damaged_files_give_one_error_and_change_nothing(tmp_path: Path) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    whole = nabn.save_chip(chip_of(model), tmp_path / "chip").read_bytes()
    rng = random.Random(4)
    broken = tmp_path / "broken"
    for _ in range(150):
        data = bytearray(whole)
        kind = rng.randrange(3)
        if kind == 0:
            data = data[: rng.randrange(len(data))]
        elif kind == 1:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            data[8 + rng.randrange(3000)] = rng.randrange(256)
        broken.write_bytes(data)
        if bytes(data) != whole:
            with pytest.raises(ChipFileError):
                nabn.load_chip(model, broken)
    assert equal(model.state_dict(), before)


def loads(model: nn.Module, path: Path) -> bool:
    """Whether the file gives a chip that runs; if not, it is one error that names the file."""
    try:
        chip = nabn.load_chip(model, path)
    except NabnError as error:
        assert isinstance(error, ChipFileError) and str(path) in str(error), error
        return False
    assert [out.shape for out in outputs(chip, inputs())] == [(6, 5), (6, 5)]
    return True


def test_any_content_gives_one_error_or_a_chip(tmp_path: Path) -> None:
    """Files whose checksum fits but whose JSON values were replaced, or whose tensors left out, one by one."""
    model = network()
    path = nabn.save_chip(chip_of(model, "gaussian"), tmp_path / "chip")
    content, tensors = read_container(path)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in list(items):
            places.append((value, key))
            walk(item)

    walk(content)
    rng, loaded = random.Random(2), 0
    for holder, key in rng.sample(places, 60):
        kept = holder[key]
        holder[key] = rng.choice([None, -1, 2.5, "x", [], {}, {"object": "os.system", "fields": {}}, True, 10**30])
        write_container(path, content, tensors)
        loaded += loads(model, path)
        holder[key] = kept
    assert 15 < loaded < 45  # versions, for one, may say what they like
    for name in tensors:
        write_container(path, content, {key: value for key, value in tensors.items() if key != name})
        assert loads(model, path) == name.endswith(("/alpha", "/layer_max")), name  # which not every tile has
    write_container(path, json.loads(json.dumps(content)), tensors)
    assert loads(model, path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = network(), tmp_path / "chip"
    nabn.save_chip(chip_of(model), path)
    old = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NabnError, match="No space left on device"):
        nabn.save_chip(chip_of(model, "gaussian"), path)
    assert path.read_bytes() == old and [entry.name for entry in tmp_path.iterdir()] == ["chip"]


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    info = nabn.chip_info(nabn.save_chip(chip_of(network()), tmp_path / "chip"))
    assert (info["seed"], info["t_inference"], info["model"]) == (3, 3600.0, "Sequential")
    assert list(info["layers"]) == ["0", "3", "6", "8"] and info["versions"]["torch"] == torch.__version__


def other_names() -> nn.Module:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 3), flat=nn.Flatten(), fc=nn.Linear(8 * 36, 5))).eval()


@pytest.mark.parametrize("exclude", [(), ("fc",)])
@pytest.mark.parametrize("kind", ["names", "more", "sizes", "no layers"])
def test_files_of_other_networks_say_so_and_name_layers(tmp_path: Path, kind: str, exclude: tuple[str, ...]) -> None:
    path = nabn.save_chip(chip_of(other_names(), exclude=exclude), tmp_path / "chip")
    more = nn.Sequential(OrderedDict(other_names().named_children())).append(nn.Linear(5, 5))
    sizes = other_names()
    sizes.conv = nn.Conv2d(3, 8, 5)
    model, message = {
        "names": (network(), "the model has no layer 'conv', 'fc'; the file has no layer '0', '3', '6' and 1 more$"),
        "more": (more, "the file has no layer '3'$"),
        "sizes": (
            sizes,
            r"'conv' is NoiseAwareConv2d \[8, 3, 3, 3\] in the file, NoiseAwareConv2d \[8, 3, 5, 5\] in the",
        ),
        "no layers": (nn.Flatten(), "Flatten has no layer to put on tiles"),
    }[kind]
    with pytest.raises(
        ChipFileError, match=r"a chip of another network, a Sequential, not of the \w+ given: .*" + message
    ):
        nabn.load_chip(model, path)
