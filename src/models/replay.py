"""CUDA graphs of inference: what starts the kernels of a batch one by one starts them as one."""

import logging

import torch
from torch import Tensor, nn

from src.backbones.features import filled_up
from src.models.base import AnomalyModule
from src.result import Prediction

log = logging.getLogger(__name__)


class Replay(nn.Module):
    """A fitted method; on CUDA its second and further batches of a size are replayed.

    The host takes longer to start some hundred kernels than a GPU to run them for a few images
    (docs/gpu.md). A graph holds the activations of its batch size for as long as this lives; those
    of all sizes share one pool. Elsewhere than on CUDA, and where a graph cannot hold what a method
    does, this is the method itself.
    """

    def __init__(self, model: AnomalyModule) -> None:
        super().__init__()
        self.model, self._replays = model, True
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Prediction]] = {}

    @torch.inference_mode()
    def forward(self, image: Tensor) -> Prediction:
        """As that of the method, images (B, 3, H, W); on CUDA valid until the next call."""
        whole = filled_up(image)
        if self._replays and image.device.type == "cuda" and whole.shape not in self._graphs:
            try:
                self._graphs[whole.shape] = self._captured(whole)
            except RuntimeError as error:
                log.warning("No CUDA graph of this model, kernels start one by one: %s", error)
                self._replays, self._graphs = False, {}
        if whole.shape not in self._graphs:
            found: Prediction = self.model(image)
            return found
        graph, given, found = self._graphs[whole.shape]
        given.copy_(whole)
        graph.replay()
        return self.model.completed(found.each(lambda values: values[: len(image)]))

    def _captured(self, image: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Prediction]:
        """A graph, its input and its output; run before, so that nothing is made the first time."""
        given = image.clone()
        stream = torch.cuda.Stream(image.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(image.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.model.traced(given)
        torch.cuda.current_stream(image.device).wait_stream(stream)
        graph, first = torch.cuda.CUDAGraph(), next(iter(self._graphs.values()), None)
        pool = first[0].pool() if first else None
        # thread_local: the threads that pin the memory of the next batches may go on meanwhile
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            found = self.model.traced(given)
        return graph, given, found
