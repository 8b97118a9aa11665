"""The named configurations, one TOML file each."""
