"""What the maps of detectors mean, by family: boxes and scores from them, and a loss with its gradient for them."""

from edgelora.vision.detectors.detector import Detector, Family
from edgelora.vision.detectors.grid import FastestDet, Yolox
from edgelora.vision.detectors.yolo import Yolo

# "grid" is FastestDet's meaning of a map of logits, "fastestdet" of the network's own outputs
FAMILIES: dict[str, Family] = {
    "grid": FastestDet(),
    "fastestdet": FastestDet(activated=True),
    "yolox": Yolox(),
    "yolo": Yolo(),
}
OF_NEW_HEADS = "grid"  # what the map of an adapter's head means

__all__ = ["FAMILIES", "OF_NEW_HEADS", "Detector", "FastestDet", "Yolo", "Yolox"]
