"""Model files: safetensors and ONNX."""
