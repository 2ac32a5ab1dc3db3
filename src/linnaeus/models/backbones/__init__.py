"""Networks of other libraries as backbones: timm, transformers and ONNX."""
