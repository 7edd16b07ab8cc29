"""Which run do people prefer? A page of questions that does not tell which is which, and what its answers say."""
