"""recjax: pre-train recommenders with JAX and carry the knowledge over."""

__version__ = "0.1.0"
