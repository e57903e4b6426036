"""Training: recipes, the Trainer, averaging of weights. This room stands on top of all others but the command line."""
