"""What the live streams are made of: who wants what, in which bytes, and how much may wait."""
