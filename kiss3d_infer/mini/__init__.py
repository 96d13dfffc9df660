"""kiss3d-mini, the small Flux and bundle LoRA of this package: `--model mini`.

base/                                        its packed base (kiss3d_infer/flux/packed.py)
adapter/pytorch_lora_weights.safetensors     its bundle LoRA
mini.json                                    how it is drawn with (kiss3d_infer/flux/models.py)
MODEL_CARD.md                                what it was made of, what it can and cannot do
"""

from pathlib import Path

NAME = "mini"
"""What users call it."""
FOLDER = Path(__file__).parent
"""Where it lies."""
