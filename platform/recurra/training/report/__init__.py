"""report.html of a run: one self-contained page, plots as inline SVG, nothing loaded from anywhere."""
