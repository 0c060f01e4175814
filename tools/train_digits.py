"""Train the demo network on scikit-learn's digits and write its checkpoint (less than a minute)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from aihwkit_nabn.commands.demo import one_thread
from aihwkit_nabn.data.classification import accuracy_on
from aihwkit_nabn.data.digits import CHECKPOINT, MAX_SHIFT, DigitsNet, load_digits, shift_images
from aihwkit_nabn.seeding import derive_seed, isolated_rng


def train(model: nn.Module, *, epochs: int, batch_size: int, learning_rate: float, max_shift: int, seed: int) -> None:
    """Train in place with AdamW, a one-cycle learning rate and random shifts, drawn anew in every epoch."""
    data = load_digits("train")
    steps = epochs * (len(data) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(data))
        images = shift_images(data.images, max_shift=max_shift, seed=derive_seed(seed, "shift", epoch))
        for batch in order.split(batch_size)[: len(data) // batch_size]:
            loss = F.cross_entropy(model(images[batch]), data.labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main(
    out: Annotated[Path, typer.Option(help="Checkpoint to write (safetensors).")] = CHECKPOINT,
    epochs: Annotated[int, typer.Option(min=1)] = 60,
    batch_size: Annotated[int, typer.Option(min=2, max=512)] = 64,
    learning_rate: Annotated[float, typer.Option(min=1e-6)] = 1e-2,
    max_shift: Annotated[int, typer.Option(min=0, help="Random shift in pixels.")] = MAX_SHIFT,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train the demo network and write its checkpoint."""
    with isolated_rng(seed), one_thread():
        model = DigitsNet()
        train(model, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, max_shift=max_shift, seed=seed)
    scores = {split: accuracy_on(load_digits(split))(model)["accuracy"] for split in ("train", "val", "test")}
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    note = {"made_by": "tools/train_digits.py", "seed": str(seed), "epochs": str(epochs)}
    save_file(state, out, metadata=note)
    typer.echo("accuracy: " + ", ".join(f"{split} {score:.2f}%" for split, score in scores.items()))
    typer.echo(f"wrote {out} ({out.stat().st_size / 1024:.0f} KiB)")


if __name__ == "__main__":
    typer.run(main)
