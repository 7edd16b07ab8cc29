"""The models that the method runs on: loading, checking, encoding, calling and decoding SDXL."""
