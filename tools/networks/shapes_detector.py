"""The demo's detector, which comes with the package, on shapes that are drawn."""

from __future__ import annotations

from aihwkit_nabn.data.demo_configs import demo_checkpoint_path, demo_config_path
from aihwkit_nabn.data.shapes import write_shapes
from aihwkit_nabn.workloads import Workload
from networks._base import NETWORKS, NetworkKind, Options
from networks._config import REQUEST, load_network, require_packages

NAME = "shapes_detector"


def require(options: Options) -> None:
    """Check that mmdetection is installed."""
    require_packages("mmdet")


def load(options: Options) -> Workload:
    """Return the network; its data are drawn beside the results."""
    root = options.out / "data"
    write_shapes(root / "shapes")
    return load_network(demo_config_path(NAME), demo_checkpoint_path(NAME), root, options)


NETWORKS.register(NAME)(NetworkKind(require=require, load=load, request=REQUEST))
