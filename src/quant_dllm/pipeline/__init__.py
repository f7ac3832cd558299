"""In what order a model is quantized."""
