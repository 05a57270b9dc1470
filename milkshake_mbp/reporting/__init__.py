"""From result files to ladders, tables, figures, pages and dashboards."""
