"""Folders as transformers writes them: weights in every form, and what is wrong in one is told."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.workloads import find_workload, load_workload

transformers = pytest.importorskip("transformers", reason="needs transformers: uv sync")
from tests.workloads.pretrained import load_folder, make  # noqa: E402

Folder = Callable[..., Path]


def test_nothing_is_downloaded_or_said_and_settings_come_back(
    saved: Callable[[str], Path], pictures: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants
    from transformers.utils import logging

    def refuses(*args: object) -> None:
        raise AssertionError(f"connects to {args}")

    folder = saved("vit")
    before = constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()
    monkeypatch.setattr(socket.socket, "connect", refuses)
    capfd.readouterr()
    load_folder(folder, pictures)
    with pytest.raises(NabnError, match=r"there is no folder 'google/vit-base-patch16-224', and nothing is downloaded"):
        load_folder("google/vit-base-patch16-224", pictures)
    assert (constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_weights_in_other_forms_are_the_same_network(
    tmp_path: Path, saved: Callable[[str], Path], pictures: Path
) -> None:
    folder = saved("vit")
    expected = load_folder(folder, pictures).model.state_dict()

    def other(name: str) -> Path:
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        return tmp_path / name

    network = transformers.ViTForImageClassification.from_pretrained(folder)
    network.save_pretrained(other("shards"), max_shard_size="10KB")
    state = network.state_dict()
    torch.save(state, other("pickled") / "pytorch_model.bin")
    torch.save(state | {"extra.weight": torch.ones(2)}, other("more") / "pytorch_model.bin")
    for name in ("shards", "pickled", "more"):
        workload = load_folder(tmp_path / name, pictures)
        found = workload.model.state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert ("left out, not of this network: extra.weight" in " ".join(workload.description)) == (name == "more")
    network.half().save_pretrained(other("half"))
    assert {p.dtype for p in load_folder(tmp_path / "half", pictures).model.parameters()} == {torch.float32}
    next((tmp_path / "shards").glob("model-00002*")).unlink()
    with pytest.raises(NabnError, match=r"lacks model-00002-of-.*, which model\.safetensors\.index\.json names"):
        load_folder(tmp_path / "shards", pictures)


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _processor(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _other_weights(folder: Path) -> None:
    make("resnet", num_labels=3).save_pretrained(folder / "other")
    shutil.copy(folder / "other/model.safetensors", folder / "model.safetensors")


def _pickled_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.nn.Linear(2, 2)}, folder / "pytorch_model.bin")


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"has no config\.json, which save_pretrained writes"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[1]"), r"config\.json must hold a mapping, got a list"),
        (_config(architectures=None), r"must say in architectures which network .* got None"),
        (
            _config(architectures=["BertForMaskedLM"]),
            "holds BertForMaskedLM, which is for none of image classification",
        ),
        (_config(architectures=["ViTModel"]), "holds ViTModel, which is for none of .*semantic segmentation"),
        (_config(architectures=["DetrForSegmentation"]), "holds DetrForSegmentation, which is for none of"),
        (_config(hidden_size="wide"), r"config\.json cannot be read: .*hidden_size"),
        (
            _config(num_hidden_layers=3),
            r"do not fit ViTForImageClassification of .*: missing vit\.\S+, vit\.\S+, vit\.\S+ and \d+",
        ),
        (_config(hidden_size=27), "do not fit ViTForImageClassification of .*: of another shape"),
        (_config(id2label={0: "circle", 1: "square 2"}), r"do not fit .*: of another shape classifier\.bias"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "has no weights: neither model.safetensors nor pytorch_model.bin",
        ),
        (_other_weights, r"do not fit ViTForImageClassification of .*: missing "),
        (_truncated, r"weights .*model\.safetensors cannot be loaded into"),
        (_pickled_code, "holds Python objects besides tensors, which are not loaded because they can run code"),
        (lambda f: (f / "preprocessor_config.json").unlink(), r"has no preprocessor_config\.json"),
        (lambda f: (f / "preprocessor_config.json").write_text("no"), r"preprocessor_config\.json cannot be read"),
        (_processor(image_processor_type="NoSuchProcessor"), r"preprocessor_config\.json cannot be read: "),
        (_processor(image_mean=[0.5, 0.5]), r"preprocessor_config\.json fails on an image: \w+"),
        (
            _processor(size={"shortest_edge": 32}),
            "must make square images of one size .* got 3 x 32 x 42 and 3 x 42 x 32",
        ),
        (_processor(size={"height": 64, "width": 64}), "cannot take images of 64 x 64 pixels"),
        (
            _config(id2label={0: "cat", 1: "dog", 2: "eel"}),
            "2 of the 2 class folders of .* are none of the labels .*cat",
        ),
        (
            _config(id2label={0: "a", 1: "circle", 2: "dog"}),
            "1 of the 2 class folders of .*: square 2; its id2label has",
        ),
    ],
)
def test_one_clear_error(
    damage: Callable[[Path], Any], message: str, tmp_path: Path, saved: Callable[[str], Path], pictures: Path
) -> None:
    shutil.copytree(saved("vit"), tmp_path / "vit")
    damage(tmp_path / "vit")
    with pytest.raises(NabnError, match=message):
        load_folder(tmp_path / "vit", pictures)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "vit",
            {"per_class": True},
            "per_class is for object detection and semantic segmentation, but ViTFor.* is for",
        ),
        (
            "detr",
            {"ignore_index": 3},
            "ignore_index is for semantic segmentation, but DetrFor.* is for object detection",
        ),
        ("vit", {"checkpoint": "w.pth"}, "takes no checkpoint; use the weights in the folder; it takes data, device"),
        ("vit", {"image_size": 48}, r"takes no image_size; use preprocessor_config\.json in the folder"),
        ("vit", {"data": None}, "needs data: the folder; for a classifier train/CLASS/images .* images with masks"),
        ("vit", {"device": "abacus"}, "device must be one that torch can use"),
    ],
)
def test_options_are_those_of_the_task(
    name: str, given: dict[str, Any], message: str, saved: Callable[[str], Path], pictures: Path
) -> None:
    options = {key: value for key, value in {"data": str(pictures), **given}.items() if value is not None}
    with pytest.raises(NabnError, match=message):
        load_workload(f"transformers:{saved(name)}", **options)


def test_data_of_detectors_and_segmenters_must_fit_the_labels(
    tmp_path: Path, saved: Callable[[str], Path], coco: Path, masks: Path
) -> None:
    for name, labels in (("numbered", 4), ("by_id", 5)):
        shutil.copytree(saved("detr"), tmp_path / name)
        _config(id2label={i: f"LABEL_{i}" for i in range(labels)})(tmp_path / name)
    with pytest.raises(NabnError, match="has 5 labels without names, but there are 3 categories of"):
        load_folder(tmp_path / "by_id", coco)
    with pytest.raises(NabnError, match="do not fit DetrForObjectDetection .*: of another shape class_labels"):
        load_folder(tmp_path / "numbered", coco)  # 4 are the category ids, 1 to 3
    _config(id2label={i: name for i, name in enumerate("a circle b rectangle d".split())})(tmp_path / "by_id")
    with pytest.raises(NabnError, match="1 of the 3 categories of .* are none of the labels of .*: triangle"):
        load_folder(tmp_path / "by_id", coco)
    _processor(do_pad=True, pad_size={"height": 96, "width": 96})(tmp_path / "by_id")
    shutil.copy(saved("detr") / "config.json", tmp_path / "by_id")
    with pytest.raises(NabnError, match=r"pads images to \{'height': 96, 'width': 96\}.*do_pad must be false"):
        load_folder(tmp_path / "by_id", coco)
    shutil.copytree(masks, tmp_path / "masks")
    names = ["background", "circle", "triangle", "rectangle"]
    for listed, message in (
        (names, "must name them in order: class 2 is 'rectangle', got 'triangle'"),
        (names[:2], "must name them in order: class 2 is 'rectangle', got missing"),
        (["sky", *names[1:]], r"1 of the 4 names in .*classes\.txt are none of the labels"),
    ):
        (tmp_path / "masks/classes.txt").write_text("\n".join(listed))
        with pytest.raises(NabnError, match=message):
            load_folder(saved("segformer"), tmp_path / "masks")


def test_a_network_is_built_without_weights_and_data(tmp_path: Path, saved: Callable[[str], Path]) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(saved("rt_detr") / "config.json", tmp_path / "bare")
    kind, name = find_workload(f"transformers:{tmp_path / 'bare'}")
    assert kind.build is not None
    first, second = kind.build(name), kind.build(name)
    assert not first.training and type(first).__name__ == "RTDetrForObjectDetection"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
