"""The rows of the ladder, a module for each kind; `milkshake_mbp.theory.bounds` puts them in one table."""
