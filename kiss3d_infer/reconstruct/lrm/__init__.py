"""A large reconstruction model as a start: four RGB views in, a first mesh out."""
