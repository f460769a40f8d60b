"""Memory: how much there is, who gives some back when it runs short, and what a pass may take."""
