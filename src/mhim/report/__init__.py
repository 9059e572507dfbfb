"""One self-contained HTML report per set of runs."""
