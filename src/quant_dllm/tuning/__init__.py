"""How scales are refined after rounding: by gradients, the planes fixed."""
