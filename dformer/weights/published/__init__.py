"""Names of the published models and ours, a file a system."""
