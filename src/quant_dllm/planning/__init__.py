"""What a quantization will give and take, told before it begins."""
