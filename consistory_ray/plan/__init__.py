"""What will be rendered: a job becomes assets with content-hashed ids, seeds, order, and a forecast of the costs.

* ``plan``: every picture with its prompt, seed, place and id.
* ``drawing``: which words each picture of a dynamic prompt has.
* ``model_files``: what a model's own files say about it, without loading it.
* ``forecast``: how long it will take and how large it will get.
* ``prompt_lengths``, ``cut_prompts``: what of a prompt the model does not read; ``prompt_syntax``: what it reads as it
  is not meant; ``said`` is all that it is told.
* ``advice``: what is allowed in a job and still probably not meant.
"""
