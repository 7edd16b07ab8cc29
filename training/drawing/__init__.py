"""How the world's pictures are drawn: backdrops, and subjects of eight kinds with what they wear."""
