"""What is loaded with a model, as far as it can be known without torch: names, files and what their headers say."""

from consistory_ray.adapters.embedding_files import check_embedding_file
from consistory_ray.adapters.files import adapter_file, file_digest
from consistory_ray.adapters.lora_files import check_lora_file
from consistory_ray.adapters.names import BUNDLED_LORAS, Embedding, LoRA, bundled_loras, is_bundled_lora

__all__ = [
    "BUNDLED_LORAS",
    "Embedding",
    "LoRA",
    "adapter_file",
    "bundled_loras",
    "check_embedding_file",
    "check_lora_file",
    "file_digest",
    "is_bundled_lora",
]
