"""The parts of the render job: one sample, the process that makes it, the workers over Ray."""
