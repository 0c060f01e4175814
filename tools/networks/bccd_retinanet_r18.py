"""RetinaNet on blood cells (BCCD), a BatchNorm behind nearly every layer."""

from __future__ import annotations

from functools import partial

from networks._base import NETWORKS, NetworkKind
from networks._config import REQUEST, load_trained, require_trained

NAME, SCOPE = "bccd_retinanet_r18", "mmdet"

NETWORKS.register(NAME)(
    NetworkKind(
        require=partial(require_trained, NAME, SCOPE, "bccd"),
        load=partial(load_trained, NAME, SCOPE),
        request=REQUEST,
    )
)
