"""A local web application in which people look at an output and decide: pick, reject, another take, a note."""
