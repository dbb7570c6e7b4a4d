"""An exported detector with openvino and numpy only: detect_openvino.py detector.xml a.npy ..."""

import sys

import numpy as np
import openvino

# f32: CPUs with bfloat16 would use it by default, too coarse for the resize inside the file
exact = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
graph = openvino.Core().read_model(sys.argv[1])
model = openvino.Core().compile_model(graph, "CPU", exact)
for path in sys.argv[2:]:
    image = np.load(path)  # (height, width, 3) uint8 RGB, as the camera gives it
    found = {output.any_name: values for output, values in model([image[None]]).items()}
    if "mask" not in found:  # U-Flow with threshold=nfa: the last step is in the file beside this
        from nfa_mask import nfa_mask

        facts = graph.get_rt_info(["goodparts", "nfa"]).astype(str)
        found["mask"] = nfa_mask(facts, found)[None]
        found["alarm"] = found["mask"].any((1, 2))
    score, alarm, mask = found["score"][0], found["alarm"][0], found["mask"][0]
    verdict = "ALARM" if alarm else "good "
    print(f"{verdict} score {score:.4g}, {mask.mean():.2%} of the pixels, {path}")
sys.exit(0)
