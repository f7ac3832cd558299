"""How many bits each block of input channels gets."""
