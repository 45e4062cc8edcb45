"""How long things take: contestants interleaved in one process, medians and ratios."""
