"""Small network outputs, assignments and inputs for tests of the objective."""

from __future__ import annotations

import torch

from cosa_dist.assignment.pseudo_labels import Assignment
from cosa_dist.assignment.reliability import select_pixels
from cosa_dist.data.reading.loader import Batch
from cosa_dist.model.network import NetworkOutput

SIZE, GRID, CLASSES = 32, 4, 3


def example_output(images, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    return NetworkOutput(
        logits=draw(images, CLASSES),
        aux_logits=draw(images, CLASSES),
        cam=draw(images, CLASSES, GRID, GRID),
        aux_cam=draw(images, CLASSES, GRID, GRID),
        segmentation=draw(images, CLASSES + 1, GRID, GRID),
        features=draw(images, 8, GRID, GRID),
    )


def example_assignment(images, seed=1, whole=False):
    generator = torch.Generator().manual_seed(seed)
    names = torch.tensor([0, 0, 1, 2, 3, 255])

    def label():
        return names[torch.randint(0, 6, (images, SIZE, SIZE), generator=generator)]

    def weights(label):
        drawn = 0.1 + torch.rand(label.shape, generator=generator)
        return drawn.masked_fill(label == 255, 0.0)

    target = torch.rand(images, CLASSES, GRID, GRID, generator=generator)
    main, aux = label(), label()
    if not whole:
        return Assignment(main, aux, target)
    regions = names[torch.randint(0, 6, (images, GRID, GRID), generator=generator)]
    return Assignment(main, aux, target, weights(main), weights(aux), select_pixels(regions, 100))


def example_batch(images, seed=2):
    generator = torch.Generator().manual_seed(seed)
    strong = torch.rand(images, 3, SIZE, SIZE, generator=generator) * 255
    labels = (torch.rand(images, CLASSES, generator=generator) < 0.5).float()
    boxes = torch.tensor([[0, SIZE, 3, SIZE]] * images)
    numbers = list(range(images))
    return Batch([str(i) for i in numbers], torch.tensor(numbers), strong, strong, labels, boxes)
