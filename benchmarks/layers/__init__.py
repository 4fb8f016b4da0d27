"""Every layer's gradient against jax.grad's, a family of layers a file."""
