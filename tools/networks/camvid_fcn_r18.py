"""FCN on road scenes (CamVid)."""

from networks._config import enter_trained

enter_trained("camvid_fcn_r18", "mmseg", "camvid")
