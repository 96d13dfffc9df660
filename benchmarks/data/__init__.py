"""The data engine: bundles per second, scaling, streaming, memory."""
