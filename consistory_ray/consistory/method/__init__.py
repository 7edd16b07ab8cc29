"""ConsiStory as the paper has it, with any model that is a backbone. Knows torch, and no model."""
