"""The `bioptimus` command."""
