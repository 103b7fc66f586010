"""What every room needs: errors, files, random numbers, memory, processes, environment."""
