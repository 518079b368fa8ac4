"""What processes of one gate share through Redis. Everything here may be lost without losing a reading."""
