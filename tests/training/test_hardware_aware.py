from __future__ import annotations

from typing import Any

import pytest
import torch
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.optim import AnalogOptimizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.training import TrainingNoise, train_hardware_aware
from aihwkit_nabn.training.settings import training_config
from tests.networks import classifier, labelled_batches
from tests.tensors import equal, state_of


def small_net() -> nn.Sequential:
    return classifier(2, n_out=3, padding=1, more=lambda: [nn.Conv2d(6, 4, 3, bias=False), nn.ReLU()])


@pytest.mark.parametrize("preset", ["gaussian:sigma=0.1", "pcm"])
@pytest.mark.parametrize("noise", [TrainingNoise(std=0.1), TrainingNoise(std=0.2, kind="multiplicative")])
def test_trains_as_aihwkit_does_with_its_own_layers(preset: str, noise: TrainingNoise) -> None:
    batches, rpu = labelled_batches(), parse_preset(preset)
    calls = iter(range(100))

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        torch.manual_seed(next(calls))  # the same weight noise in both trainings
        return F.cross_entropy(model(batch[0]), batch[1])

    ours = train_hardware_aware(
        small_net(),
        lambda epoch: iter(batches),  # of a number not known beforehand, so the learning rate stays
        noise=noise,
        rpu_config=rpu,
        loss_fn=loss_fn,
        epochs=1,
        learning_rate=0.05,
    )
    calls = iter(range(100))
    analog = convert_to_analog(small_net(), training_config(rpu, noise, 2.5))
    analog.train()
    stepper = AnalogOptimizer(torch.optim.SGD, analog.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    stepper.regroup_param_groups(analog)
    for batch in batches:
        stepper.zero_grad()
        loss_fn(analog, batch).backward()
        stepper.step()
    analog.eval()
    x = batches[0][0]
    assert torch.allclose(ours.model(x), analog(x), atol=1e-5)
    before, after = small_net().state_dict(), ours.model.state_dict()
    assert not torch.allclose(before["0.weight"], after["0.weight"], atol=1e-3)
    # Clipped after the last step: at 2.5 standard deviations of what was there before it.
    if preset != "pcm":
        assert after["3.weight"].abs().max() <= 2.7 * after["3.weight"].std()


@pytest.mark.parametrize("preset", ["gaussian:sigma=0.1", "pcm"])
def test_frozen_layers_stay_as_they_are(preset: str) -> None:
    model = small_net()
    model[0].requires_grad_(False)
    model[6].bias.requires_grad_(False)
    trained = train_hardware_aware(
        model,
        labelled_batches(),
        noise=TrainingNoise(std=0.1),
        rpu_config=parse_preset(preset),
        clip_sigma=0.5,
        epochs=1,
    ).model
    before, after = state_of(model), state_of(trained)
    for name in ("0.weight", "0.bias", "6.bias"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=0.0)
    assert not torch.allclose(after["3.weight"], before["3.weight"], atol=1e-3)
    with pytest.raises(NabnError, match="nothing to train"):
        train_hardware_aware(model.requires_grad_(False), labelled_batches(), noise=TrainingNoise(std=0.1))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "computed",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.3),
    ],
)
def test_what_computed_weights_learn_is_kept(computed: Any) -> None:
    model, plain = small_net(), small_net()
    model[6] = computed(model[6]).eval()
    with torch.no_grad():
        model(labelled_batches()[0][0])
        plain[6].weight.copy_(model[6].weight)
    options: dict[str, Any] = {"noise": TrainingNoise(std=0.05), "epochs": 1, "learning_rate": 0.05}
    trained, expected = (train_hardware_aware(net, labelled_batches(), **options).model for net in (model, plain))
    x = labelled_batches()[1][0]
    torch.testing.assert_close(trained(x), expected(x))
    trained.load_state_dict(expected.state_dict())
    assert type(trained[6]) is nn.Linear and torch.isfinite(model(x)).all()


def test_same_seed_same_network_and_nothing_of_the_callers_is_touched() -> None:
    model, batches = small_net(), labelled_batches()
    before = state_of(model)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    runs = [train_hardware_aware(model, batches, noise=TrainingNoise(std=0.1), epochs=2, seed=s) for s in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(model.state_dict(), before)
    assert not model.training and not runs[0].model.training and type(runs[0].model) is type(model)
    first, again, other = (run.model.state_dict() for run in runs)
    assert set(first) == set(before)
    assert equal(first, again)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert not torch.equal(first["1.running_mean"], before["1.running_mean"])
    report = runs[0].report
    assert (report.epochs, report.images, report.labels, report.images_seen, report.steps) == (2, 32, 32, 64, 8)
    assert len(report.losses) == 2 and report.seconds > 0 and report.std == 0.1


def test_batches_may_depend_on_the_epoch() -> None:
    asked: list[int] = []

    def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
        asked.append(epoch)
        return labelled_batches(epoch + 1)

    told: list[int] = []
    trained = train_hardware_aware(
        small_net(), batches, noise=TrainingNoise(std=0.0), epochs=3, on_epoch=lambda epoch, loss: told.append(epoch)
    )
    assert asked == told == [0, 1, 2]
    assert trained.report.images == 8 and trained.report.images_seen == 48
    assert trained.report.noise == "additive 0"


class Mixed(nn.Module):
    """Layers that aihwkit's own conversion refuses or skips."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(torch.relu(self.norm(self.depthwise(self.stem(x))))).flatten(2).mT
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_every_layer_is_trained_and_what_stays_digital_is_named() -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    trained = train_hardware_aware(model, labelled_batches(), noise=TrainingNoise(std=0.05), epochs=1)
    before = dict(model.named_parameters())
    for name, after in trained.model.named_parameters():
        if "bias" not in name:
            assert not torch.equal(after, before[name]), name
    assert "attention" in trained.report.on_tiles and "depthwise" not in trained.report.on_tiles


class Held(nn.Module):
    """Reaches its layers past the module tree."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6 * 36, 3)
        self.op, self.layers = lambda x: self.conv(x).relu(), [self.fc]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](self.op(x).flatten(1))


def test_the_trained_network_runs_its_own_layers() -> None:
    net, batches = Held().eval(), labelled_batches()
    before = state_of(net)
    trained = train_hardware_aware(net, batches, noise=TrainingNoise(std=0.1), epochs=1, learning_rate=0.1).model
    x = batches[0][0]
    conv, fc = trained.conv, trained.fc
    assert torch.allclose(trained(x), F.linear(conv(x).relu().flatten(1), fc.weight, fc.bias), atol=1e-6)
    assert not torch.allclose(trained(x), net(x), atol=1e-2)
    assert equal(state_of(net), before)


def test_frozen_statistics_stay() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    model = small_net()
    model[1] = FrozenBatchNorm2d(6)
    trained = train_hardware_aware(model, labelled_batches(), noise=TrainingNoise(std=0.1), epochs=1)
    assert torch.equal(trained.model[1].running_var, model[1].running_var)
    assert torch.equal(trained.model[1].weight, model[1].weight)


def test_converters_are_trained_with_and_ranges_learned() -> None:
    rpu = parse_preset("gaussian:sigma=0.02,inp_bits=6,out_bits=6")
    noise = TrainingNoise(std=0.02)
    trained = train_hardware_aware(small_net(), labelled_batches(), noise=noise, rpu_config=rpu, epochs=2)
    ideal = train_hardware_aware(small_net(), labelled_batches(), noise=noise, epochs=2)
    assert trained.report.settings["converters"] and not ideal.report.settings["converters"]
    assert not torch.equal(trained.model[0].weight, ideal.model[0].weight)
    scenario = nabn.Scenario(name="converters", rpu_config=rpu)
    images = [batch[0] for batch in labelled_batches()]
    result = nabn.evaluate(
        trained.model,
        scenarios=[scenario],
        methods=["none", "paired"],
        chips=1,
        calibration_batches=images,
        eval_fn=lambda model: {"output": float(model(images[0]).abs().mean())},
    )
    assert len(result.records) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "net"}, "model must be a torch.nn.Module"),
        ({"noise": 0.1}, "noise must be a TrainingNoise"),
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number > 0"),
        ({"clip_sigma": 0.0}, "clip_sigma must be a finite number > 0"),
        ({"batches": 3}, "batches must be an iterable of labelled batches"),
        ({"batches": []}, "batches gave no batch in epoch 0"),
        ({"batches": [torch.zeros(2, 2, 6, 6)]}, "needs loss_fn"),
        ({"batches": [(torch.full((2, 2, 6, 6), float("nan")), torch.zeros(2).long())]}, "NaN or infinite"),
        ({"loss_fn": None}, "loss_fn must be callable"),
        ({"optimizer_options": {"speed": 3}}, "optimizer SGD does not take"),
        ({"rpu_config": object()}, "rpu_config must be for aihwkit's torch tile"),
        ({"exclude": ("nowhere",)}, "exclude names 'nowhere'"),
        ({"learning_rate": 1e20, "epochs": 3}, "a lower learning_rate may help"),
        ({"seed": -1}, "seed must be an integer >= 0"),
    ],
)
def test_bad_input_is_named(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"model": small_net(), "batches": labelled_batches(), "noise": TrainingNoise(std=0.1)}
    arguments |= changed
    model, batches = arguments.pop("model"), arguments.pop("batches")
    with pytest.raises(NabnError, match=message):
        train_hardware_aware(model, batches, **arguments)


def test_an_analog_model_is_refused() -> None:
    analog = nabn.convert_to_noise_aware(small_net(), parse_preset("pcm"))
    with pytest.raises(NabnError, match="module '0' is analog already"):
        train_hardware_aware(analog, labelled_batches(), noise=TrainingNoise(std=0.1))
