"""For all tests."""

import signal

# A shell has what it starts in the background ignore Ctrl-C, and its children inherit that; tests
# send it to the programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
