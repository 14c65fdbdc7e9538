"""Looking and steering: what people and their tools need, without a word of any user interface."""
