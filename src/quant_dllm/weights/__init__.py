"""What is stored: a quantized weight as the tensors that a checkpoint holds."""
