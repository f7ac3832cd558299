"""How a matrix is rounded: one published method a file, behind one interface."""
