"""How good a model is: its likelihood bound, and how far it is from another model."""
