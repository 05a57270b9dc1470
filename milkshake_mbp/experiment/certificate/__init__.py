"""The coded certificate: training, search, and what is shown of them."""
