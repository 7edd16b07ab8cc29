"""The bundled model and its judge: the model's parts, its weights, the words of its world, who reads its pictures."""
