"""What the adapter draws while it trains, beside the training and never in its way.

A worker leaves the adapter in run.dir and goes on (`rounds`); the driver hands it to a process of
its own over Ray (`painter`), which draws and measures (`drawing`), and sends to MLflow what comes
back.
"""
