"""What the experiments share: data, options, run folders, training, figures."""
