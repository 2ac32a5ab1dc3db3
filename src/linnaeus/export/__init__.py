"""Models for other machines: ONNX with the preprocessing inside, int8, and torchvision's weights; each checked."""
