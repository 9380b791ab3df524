"""Merged model -> ONNX graphs -> precisions -> parity check -> bundle."""
