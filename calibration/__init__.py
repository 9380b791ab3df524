"""INT8: which layers are quantised, with which ranges; ONNX in, ONNX out, torch-free."""
