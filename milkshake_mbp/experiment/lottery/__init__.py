"""Lottery tickets as an experiment: rounds and their controls, the ticket that no training finds, and their figures."""
