"""What is decided by measuring on the target: passes that may lose, passes that do, settings of the session, other presets."""
