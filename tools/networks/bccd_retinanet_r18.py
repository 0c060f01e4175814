"""RetinaNet on blood cells (BCCD), a BatchNorm behind nearly every layer."""

from networks._config import enter_trained

enter_trained("bccd_retinanet_r18", "mmdet", "bccd")
