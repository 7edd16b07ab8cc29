"""What a run leaves behind: picture files, an index with one row each, a run record, a gallery."""
