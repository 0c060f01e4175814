"""RTMDet-tiny on blood cells (BCCD): 76 layers, none of them easy."""

from networks._config import enter_trained

enter_trained("bccd_rtmdet_tiny", "mmdet", "bccd")
