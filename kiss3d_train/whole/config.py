"""What a recipe says of whole parts that train."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kiss3d_infer.config import Config, Number

Part = Literal["vae", "transformer", "text_encoder", "text_encoder_2"]
Subject = Literal["views", "bundles"]


class FullSection(Config):
    """Training of whole parts of the base, instead of an adapter on a frozen one.

    The weights that train are float32; base.dtype is the precision that they are computed with.
    """

    parts: Annotated[tuple[Part, ...], Field(min_length=1)]
    """[vae]: the autoencoder, on every tile of the bundles, never compiled. [transformer], or with
    it text_encoder and text_encoder_2 (CLIP and T5): drawing by caption."""
    draws: Subject = "views"
    """What the transformer learns to draw: single RGB views, or whole bundles, as adapters do."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the trained parts in run.dir/base."""
    kl_weight: Annotated[Number, Field(ge=0)] = 1e-4
    """Of the VAE's Kullback-Leibler term, the mean over latent values."""

    @property
    def is_vae(self) -> bool:
        """Whether the autoencoder trains."""
        return self.parts == ("vae",)

    @model_validator(mode="after")
    def _parts_train_together(self) -> Self:
        if len(set(self.parts)) < len(self.parts):
            raise ValueError("parts must differ")
        if not self.is_vae and ("vae" in self.parts or "transformer" not in self.parts):
            raise ValueError("parts must be [vae], or transformer with or without text encoders")
        return self
