"""Run an exported detector with onnxruntime and numpy only: detect.py detector.onnx a.npy ..."""

import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
for path in sys.argv[2:]:
    image = np.load(path)  # (height, width, 3) uint8 RGB, as the camera gives it
    score, alarm, anomaly_map, mask = session.run(None, {"image": image[None]})
    verdict = "ALARM" if alarm[0] else "good "
    print(f"{verdict} score {score[0]:.4g}, {mask[0].mean():.2%} of the pixels, {path}")
sys.exit(0)
