"""jaxalign: safety preference alignment of language models in JAX.

Import the parts that you need: `jaxalign.losses` and `jaxalign.adaptive` need jax alone.
"""

__version__ = "0.1.0"
