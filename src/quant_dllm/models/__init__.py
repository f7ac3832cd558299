"""Which model: one network in plain torch, and one value for each family that it can be."""
