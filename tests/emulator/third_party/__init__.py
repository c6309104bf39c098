"""Programs of others, run in the emulator: an error in our own reading would sit on both sides."""
