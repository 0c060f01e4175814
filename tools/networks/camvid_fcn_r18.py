"""FCN on road scenes (CamVid)."""

from __future__ import annotations

from functools import partial

from networks._base import NETWORKS, NetworkKind
from networks._config import REQUEST, load_trained, require_trained

NAME, SCOPE = "camvid_fcn_r18", "mmseg"

NETWORKS.register(NAME)(
    NetworkKind(
        require=partial(require_trained, NAME, SCOPE, "camvid"),
        load=partial(load_trained, NAME, SCOPE),
        request=REQUEST,
    )
)
