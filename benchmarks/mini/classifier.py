"""A small network that tells the class of a bundle, trained on exact renders alone."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.mini.held_out import CHECK_SEED, CLASSIFIER_SEED, NUM_CLASSES, held_out
from kiss3d_infer.bundle import Bundle
from kiss3d_infer.progress import track

TILE = 64
_WIDTHS = (24, 48, 96, 128)
_EPOCHS, _BATCH, _LR = 8, 32, 2e-3
_COLOR_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


class Classifier(nn.Module):
    """The same convolutions on every view, RGB beside normals, then one layer on all views."""

    def __init__(self, num_views: int = 4) -> None:
        super().__init__()
        channels = (6, *_WIDTHS)
        self.views = nn.Sequential(
            *(_block(a, b) for a, b in itertools.pairwise(channels)),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.classes = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(num_views * 4 * _WIDTHS[-1], NUM_CLASSES)
        )

    def forward(self, views: Tensor) -> Tensor:
        """Logits [B, classes] of views [B, V, 6, T, T]."""
        features = self.views(views.flatten(0, 1))
        return self.classes(features.reshape(len(views), -1))


def _block(num_in: int, num_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, 3, stride=2, padding=1),
        nn.BatchNorm2d(num_out),
        nn.ReLU(),
    )


def views_of(bundle: Bundle) -> Tensor:
    """What the classifier looks at: [V, 6, 64, 64], white being 0."""
    views = torch.cat([bundle.rgb, bundle.normal_colors], dim=1)
    return 1 - functional.interpolate(views, size=(TILE, TILE), mode="area")


def rendered(count: int, series: int) -> tuple[Tensor, Tensor]:
    """Views [N, V, 6, T, T] and classes [N] of the first objects of a series."""
    things = track(list(held_out(count, series)), f"rendering series {series}")
    pairs = [(views_of(thing.bundle(TILE)), thing.maker) for thing in things]
    return torch.stack([views for views, _ in pairs]), torch.tensor([of for _, of in pairs])


def training_set(per_class: int) -> tuple[Tensor, Tensor]:
    """What the classifier, and the descriptor beside it, know of the classes."""
    return rendered(per_class * NUM_CLASSES, CLASSIFIER_SEED)


def check_set(per_class: int) -> tuple[Tensor, Tensor]:
    """Objects on which the classifiers' own accuracy is measured."""
    return rendered(per_class * NUM_CLASSES, CHECK_SEED)


def train(views: Tensor, classes: Tensor, *, epochs: int = _EPOCHS, seed: int = 0) -> Classifier:
    """Train a classifier on views [N, V, 6, T, T] and classes [N], the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(views.shape[1])
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.05)
        steps = epochs * -(-len(views) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=steps)
        for batch in track(list(_batches(len(views), epochs)), "training the classifier"):
            logits = model(_varied(views[batch]))
            loss = functional.cross_entropy(logits, classes[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def softened(views: Tensor) -> Tensor:
    """Views [N, V, 6, T, T] as blurred, by 5 of 64 pixels, and as noisy as a poor drawing."""
    generator = torch.Generator().manual_seed(0)
    blurred = functional.avg_pool2d(views.flatten(0, 1), 5, stride=1, padding=2).view_as(views)
    noise = 0.05 * torch.randn(views.shape, generator=generator)
    return (blurred + noise).clamp(0, 1)


def ranking(model: Classifier, views: Tensor) -> Tensor:
    """Classes [N, classes], likeliest first, for views [N, V, 6, T, T]."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in views.split(64)]).argsort(1, descending=True)


def _batches(count: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(count).split(_BATCH)


def _varied(views: Tensor) -> Tensor:
    """Other colours, blur, noise and shifts: the shape shall tell, and drawings are not sharp."""
    orders = torch.tensor(_COLOR_ORDERS)[torch.randint(len(_COLOR_ORDERS), (len(views),))]
    order = torch.cat([orders, torch.tensor([[3, 4, 5]]).expand(len(views), 3)], dim=1)
    views = torch.stack([one[:, channels] for one, channels in zip(views, order, strict=True)])
    blurred = functional.avg_pool2d(views.flatten(0, 1), 3, stride=1, padding=1).view_as(views)
    share = torch.rand(len(views), 1, 1, 1, 1)
    views = share * views + (1 - share) * blurred + 0.03 * torch.randn_like(views)
    right, down = torch.randint(-3, 4, (2,)).tolist()
    return views.roll((down, right), (-2, -1))
