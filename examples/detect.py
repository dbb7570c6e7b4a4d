"""Run an exported detector with onnxruntime and numpy only: detect.py detector.onnx a.npy ..."""

import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
names = [output.name for output in session.get_outputs()]
facts = session.get_modelmeta().custom_metadata_map
for path in sys.argv[2:]:
    image = np.load(path)  # (height, width, 3) uint8 RGB, as the camera gives it
    found = dict(zip(names, session.run(None, {"image": image[None]}), strict=True))
    if "mask" not in found:  # U-Flow with threshold=nfa: the last step is in the file beside this
        from nfa_mask import nfa_mask

        found["mask"] = nfa_mask(facts["goodparts.nfa"], found)[None]
        found["alarm"] = found["mask"].any((1, 2))
    score, alarm, mask = found["score"][0], found["alarm"][0], found["mask"][0]
    verdict = "ALARM" if alarm else "good "
    print(f"{verdict} score {score:.4g}, {mask.mean():.2%} of the pixels, {path}")
sys.exit(0)
