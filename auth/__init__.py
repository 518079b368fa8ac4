"""Who is calling, what may it touch, and how often."""
