"""Training and evaluation by any rule."""
