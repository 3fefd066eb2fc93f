"""Agent conversations, captured exactly once: raw events, the turns, nodes and totals that follow from them."""
