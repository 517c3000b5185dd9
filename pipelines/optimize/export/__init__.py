"""From a checkpoint to a graph for onnxruntime."""
