"""What is done with networks: train and bound, evaluate, lottery, certificate, ranking, phase transition."""
