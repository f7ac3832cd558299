"""How one block is coded, shared by the methods."""
