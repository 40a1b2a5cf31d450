"""The `moonshard` command and the launchers that place workers."""
