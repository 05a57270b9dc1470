"""Milkshake's interface on Lightning 2: args, main, models, datamodules. Knows nothing of pruning or bounds."""
