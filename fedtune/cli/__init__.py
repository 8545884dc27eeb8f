"""The `fedtune` command: parses, calls, prints. One file a subcommand, imports only on use."""
