"""The `onnx` engine: any model in ONNX through ONNX Runtime, by the Open Inference Protocol, with a server of ours."""
