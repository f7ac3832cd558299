"""What the layer sees while it is calibrated."""
