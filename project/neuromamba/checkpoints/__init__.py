"""Reading the weights of every kind of checkpoint, without running code from it."""
