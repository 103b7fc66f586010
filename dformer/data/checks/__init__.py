"""What is wrong with a data set: faults that keep training from starting, and oddities."""
