"""The transformer with the text encoders before it, from tokens to squared errors."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from kiss3d_train.objective import Batch, squared_errors
from kiss3d_train.whole.config import Part
from kiss3d_train.whole.views import ViewBatch

if TYPE_CHECKING:
    from diffusers import FluxPipeline


class WholeFlux(nn.Module):
    """All that draws, in one forward pass, as DDP needs it.

    It stays in evaluation mode: T5's dropout would be no function of the step.

    Args:
        pipeline: its transformer, text encoders and tokenizers are used.
        parts: which of them train.
        guidance: value for a guidance-distilled model.
        clip_prompt: what CLIP reads, whatever is drawn.
        compiled: compile each kind of the transformer's blocks.
    """

    clip_tokens_1L: Tensor

    def __init__(
        self,
        pipeline: "FluxPipeline",
        parts: tuple[Part, ...],
        guidance: float,
        clip_prompt: str,
        *,
        compiled: bool,
    ) -> None:
        super().__init__()
        self.transformer = pipeline.transformer
        self.text_encoder = pipeline.text_encoder
        self.text_encoder_2 = pipeline.text_encoder_2
        for name, network in self.named_children():
            network.requires_grad_(name in parts)
        self.eval()
        self._guidance = guidance if pipeline.transformer.config.guidance_embeds else None
        clip_tokens = pipeline.tokenizer(
            clip_prompt,
            padding="max_length",
            max_length=pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        self.register_buffer("clip_tokens_1L", clip_tokens, persistent=False)
        if compiled:
            self.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)

    def forward(
        self,
        x0_BNC: Tensor,
        noise_BNC: Tensor,
        sigma_B: Tensor,
        tokens_BL: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """Squared errors of the predicted velocity, [B, N, C]; see `objective.squared_errors`."""
        states_BLD, pooled_1P = self.embed(tokens_BL)
        pooled_BP = pooled_1P.expand(len(tokens_BL), -1)
        row_B = tokens_BL.new_zeros(len(tokens_BL))
        batch = Batch(x0_BNC, noise_BNC, sigma_B, states_BLD, pooled_BP, row_B, grid)
        return squared_errors(self.transformer, batch, self._guidance)

    def embed(self, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        """T5 states [B, L, D], and CLIP's pooled vector [1, P], which is the same for all."""
        states: Tensor = self.text_encoder_2(tokens_BL)[0]
        pooled: Tensor = self.text_encoder(self.clip_tokens_1L).pooler_output
        return states, pooled


def view_losses(model: nn.Module, batch: ViewBatch) -> Tensor:
    """Unweighted loss of each sample, [B]."""
    squared: Tensor = model(
        x0_BNC=batch.x0_BNC,
        noise_BNC=batch.noise_BNC,
        sigma_B=batch.sigma_B,
        tokens_BL=batch.tokens_BL,
        grid=batch.grid,
    )
    return squared.mean(dim=(1, 2))
