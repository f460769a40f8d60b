"""An encoder as an ONNX graph that has no weights of its own: it refers to the safetensors."""
