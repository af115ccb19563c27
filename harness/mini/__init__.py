"""The mini world: procedural clips, the questions asked about them, and the suite they form."""
