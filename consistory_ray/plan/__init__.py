"""What will be rendered: a job becomes assets with content-hashed ids, seeds, order, and a forecast of the costs."""
