"""What tasks on pictures ask of numpy: boxes and masks, what detectors mean, how good they are."""
