"""The runtime's nouns, a file each; the scheduler and what it stands on import no torch."""
