"""The commands: flags in, one call of the library, one sentence for what is wrong."""
