"""Images and annotations: reading, forms, checks."""
