"""graphopt: makes a trained model as fast as this machine allows, and proves that it still computes the same thing."""
