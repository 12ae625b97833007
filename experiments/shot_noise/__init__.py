"""Shot noise in values, gradients and trainings: see :mod:`.shot_settings`."""
