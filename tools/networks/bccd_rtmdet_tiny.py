"""RTMDet-tiny on blood cells (BCCD): 76 layers, none of them easy."""

from __future__ import annotations

from functools import partial

from networks._base import NETWORKS, NetworkKind
from networks._config import REQUEST, load_trained, require_trained

NAME, SCOPE = "bccd_rtmdet_tiny", "mmdet"

NETWORKS.register(NAME)(
    NetworkKind(
        require=partial(require_trained, NAME, SCOPE, "bccd"),
        load=partial(load_trained, NAME, SCOPE),
        request=REQUEST,
    )
)
