"""Bundle in, asset out: the 3D bundle format, Flux sampling, reconstruction and serving."""

__version__ = "0.1.0"
