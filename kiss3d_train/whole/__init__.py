"""Training of whole parts of a small Flux: its autoencoder, or what draws single views.

Both kinds of training hold their whole data set on the worker's device, as steps take milliseconds:
a batch is a gather, and all that is random in it is drawn there. It needs what the trainer of
adapters needs: engine, loop, checkpoints and tracking are the same.
"""
