"""Evidence for the gradient rules: the table of operators, and ONNX's own node tests differentiated."""
