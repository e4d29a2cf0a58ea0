"""Float64 NumPy references, written from the formulas. Nothing here may import jaxalign."""
