"""What a language model needs on the device beside what every model does."""
