"""Exports for other runtimes: ONNX with the preprocessing inside, int8, torchvision state dicts; each is verified."""
