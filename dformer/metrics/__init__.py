"""How good results are, in NumPy."""
