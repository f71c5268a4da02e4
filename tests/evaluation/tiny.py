"""A tiny model, images and a dataset for the tests of this folder."""

import datasets
import numpy as np
import PIL.Image
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

NUM_LABELS = 5
SIZES = [(33, 47), (64, 40), (40, 64), (33, 47), (35, 90)]


def tiny_model(num_labels=NUM_LABELS):
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
        classifier_dropout_prob=0.5,
        num_labels=num_labels,
    )
    model = SegformerForSemanticSegmentation(config).eval()
    # As initialised, one class wins everywhere.
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    return model


def images():
    rng = np.random.default_rng(0)
    return [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


def as_dataset(images, label_maps):
    columns = {
        "image": images,
        "label_map": [PIL.Image.fromarray(label_map) for label_map in label_maps],
        "image_id": [f"frame_{number}" for number in range(len(images))],
    }
    features = {"image": datasets.Image(), "label_map": datasets.Image(), "image_id": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def labelled_dataset():
    rng = np.random.default_rng(1)
    label_maps = [rng.integers(0, NUM_LABELS, size, dtype=np.uint8) for size in SIZES]
    for label_map in label_maps:
        label_map[:3] = 255
    return as_dataset(images(), label_maps)
