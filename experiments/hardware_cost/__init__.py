"""What a training step costs on an IBM device, and what ten minutes of it buy: see :mod:`.cost_settings`.

Nothing is imported here: workers with other libraries pass through this package.
"""
