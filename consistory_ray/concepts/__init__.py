"""Which words of a prompt name the subject, however they are written there. Pure."""
