"""Defaults that help texts name. They are here, and this file imports nothing, so that `--help` does not wait for PyTorch."""

BACKBONE = "resnet50.fb_ssl_yfcc100m_ft_in1k"  # that of RevHRNetConfig
LOSS_TERMS = ("cross_entropy", "focal", "dice", "tversky", "lovasz")  # those of SegmentationConfig
MOST_WORKERS = 8  # loader processes; the user may set more
MOST_IGNORED = 5.0  # per cent of the pixels that a single ignored id or colour may cover
VAL_FRACTION = 0.2  # of the images of a folder without a split to score on
MIN_CONFIDENCE = 0.9  # of a pseudo-label
CALIBRATION_IMAGES = 32  # for a network of eight bits
MAX_DROP = 0.005  # of mIoU by eight bits
MAX_DOWNLOAD = 100.0  # megabytes of an image or a video from the web; that of models/fetching.py
