"""DeepSpeed: the only package that names it."""
