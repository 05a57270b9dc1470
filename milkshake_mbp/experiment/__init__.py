"""One run to result files, result files to tables and figures."""
