"""Scoring a model of one label space on another: probabilities of partners are summed."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from revhrnet_hf.data import get_label_space
from revhrnet_hf.data.translation import sources_of
from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.evaluation import class_sources, evaluate_dataset
from revhrnet_hf.evaluation.sliding import merge_classes

from ..label_spaces import unnamed_space

TINY = dict(depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)


def config_of(names):
    return SegformerConfig(**TINY, id2label=dict(enumerate(names)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merged_logits_are_sums_of_probabilities(dtype):
    logits = torch.randn(2, 6, 5, 7).to(dtype) * 4
    sources = [[3], [0, 5, 1], [], [4, 2]]
    merged = merge_classes(logits, sources).float().softmax(1)
    probabilities = logits.float().softmax(1)
    expected = torch.stack([probabilities[:, of].sum(1) if of else torch.zeros(2, 5, 7) for of in sources], dim=1)
    torch.testing.assert_close(merged, expected, atol=1e-6 if dtype == torch.float32 else 0.02, rtol=0)


def test_identity_is_exact():
    logits = torch.randn(1, 4, 3, 3)
    assert torch.equal(merge_classes(logits, [[0], [1], [2], [3]]), logits)


def test_a_sum_can_beat_the_best_single_class():
    """The first of 0.4, 0.3 and 0.3 is the best; but if the others are one class, their sum wins."""
    logits = torch.tensor([0.4, 0.3, 0.3]).log().view(1, 3, 1, 1)
    assert merge_classes(logits, [[0], [1, 2]]).argmax(1).item() == 1


def test_evaluated_on_other_classes():
    """Against a loop over pixels with the model's own probabilities."""
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(config_of(get_label_space("cityscapes").names)).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=2)
    processor = SegformerImageProcessor(do_resize=False)
    camvid = get_label_space("camvid11")
    rng = np.random.default_rng(0)
    image = PIL.Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    truth = rng.integers(0, 11, (32, 32), dtype=np.uint8)
    sources = class_sources(model.config, camvid, "camvid")
    rows = [{"image": image, "label_map": PIL.Image.fromarray(truth), "image_id": "a"}]
    confusion = evaluate_dataset(model, processor, rows, 11, sources=sources)

    with torch.no_grad():
        probabilities = model(**processor(image, return_tensors="pt")).logits[0].softmax(0)
    sums = np.full((11, 8, 8), 1e-30)
    for row in range(8):
        for column in range(8):
            for index, of in enumerate(sources):
                sums[index, row, column] += sum(probabilities[k, row, column].item() for k in of)
    # Logits are what is enlarged; a constant at each place, which the softmax's denominator is, changes no order.
    enlarged = torch.nn.functional.interpolate(torch.from_numpy(sums).log()[None], (32, 32), mode="bilinear")[0]
    expected = np.zeros((11, 11), dtype=int)
    np.add.at(expected, (truth, enlarged.argmax(0).numpy()), 1)
    assert np.array_equal(confusion.matrix.numpy(), expected)


def test_which_classes_are_joined():
    camvid = get_label_space("camvid11")
    assert class_sources(config_of(camvid.names), camvid, "camvid") is None
    assert class_sources(config_of(get_label_space("cityscapes").names), camvid, "camvid")[8] == [13, 14, 15, 16]
    road = unnamed_space(["road", "sky"])
    assert class_sources(config_of(["Sky", "Tree", "Road"]), road, "own") == [[2], [0]]
    # Placeholders say nothing: their place counts.
    assert class_sources(config_of(["LABEL_0", "LABEL_1"]), road, "own") is None
    assert class_sources(config_of(["ROAD", "LABEL_1"]), road, "own") is None


@pytest.mark.parametrize(
    ("own_names", "names", "expected"),
    [
        (["road", "car", "sky"], ["sky", "road", "cat"], [[2], [0], []]),
        (["Sky", "Tree"], ["sky", "road", "car"], [[0], [], []]),
        (["sky", "tree"], ["sky", "road"], [[0], []]),
        (["road", "sky"], ["sky", "road"], [[1], [0]]),
    ],
)
def test_classes_of_equal_names_are_the_same(own_names, names, expected):
    """As for a classifier that is transferred, also where some classes of either side have no partner."""
    space = unnamed_space(names)
    assert class_sources(config_of(own_names), space, "own") == expected
    assert sources_of(unnamed_space(own_names), space) == expected


def test_more_classes_than_a_label_map_holds():
    """Of a model alone: its classes count as those of the dataset, which are fewer."""
    config = config_of([f"class {index}" for index in range(300)] + ["Road"])
    assert class_sources(config, unnamed_space(["road", "sky"]), "own") == [[300], []]
    with pytest.raises(CheckpointError, match="none of the checkpoint's 256 classes"):
        class_sources(config_of([f"class {index}" for index in range(256)]), unnamed_space(["road"]), "own")


@pytest.mark.parametrize("own_names", [["cat", "dog"], ["cat", "dog", "cow"], ["LABEL_0", "LABEL_1", "LABEL_2"]])
def test_no_class_with_a_partner_is_refused(own_names):
    said = rf"none of the checkpoint's {len(own_names)} classes \({', '.join(own_names)}\) is among the 2 of own \(road, sky\)"
    with pytest.raises(CheckpointError, match=said):
        class_sources(config_of(own_names), unnamed_space(["road", "sky"]), "own")
