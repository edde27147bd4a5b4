"""Tasks: what is asked of a model, from task files and data to examples."""
