"""A sentence encoder: found, exported to ONNX once, run by ONNX Runtime, its batches shared by concurrent requests."""
