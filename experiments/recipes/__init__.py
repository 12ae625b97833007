"""Questions about hybrid networks, answered with numbers."""
