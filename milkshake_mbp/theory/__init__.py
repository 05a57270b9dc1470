"""Pure functions of tensors and numbers: the paper's theory and its peers'. No Lightning, no files, no global state."""
