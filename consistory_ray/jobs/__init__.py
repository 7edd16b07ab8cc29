"""What users write: the job file, read from YAML, JSON, CSV or Parquet, checked, and told what is wrong with it."""
