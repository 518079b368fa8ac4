"""The load generators: per tool a run and a pure reading of what it says."""
