"""An exported detector with openvino and numpy only: detect_openvino.py detector.xml a.npy ..."""

import sys

import numpy as np
import openvino

# f32: CPUs with bfloat16 would use it by default, too coarse for the resize inside the file
exact = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
model = openvino.Core().compile_model(sys.argv[1], "CPU", exact)
for path in sys.argv[2:]:
    image = np.load(path)  # (height, width, 3) uint8 RGB, as the camera gives it
    found = model([image[None]])
    score, alarm, mask = found["score"][0], found["alarm"][0], found["mask"][0]
    verdict = "ALARM" if alarm else "good "
    print(f"{verdict} score {score:.4g}, {mask.mean():.2%} of the pixels, {path}")
sys.exit(0)
